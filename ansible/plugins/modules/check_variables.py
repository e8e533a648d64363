#!/usr/bin/python
"""Documentation of the action `check_variables`, which runs on the controller."""

DOCUMENTATION = r"""
module: check_variables
short_description: Refuse variables of the wrong kind, and misspelt ones
description:
  - Looks at all variables C(gridcore_…) as a host sees them, and says of each that is of the wrong kind, out
    of range, empty or unknown what was expected, or which name comes nearest.
  - With O(role) at the role's own variables too, and then at what stands in the variable C(<role>_problems).
  - Without O(role) at what a playbook for tasks or nodes was given with C(-e).
  - No value that may be secret is shown. Nothing is done on the host, which need not be reached.
options:
  role:
    description: A role of this collection.
    type: str
  refuse:
    description: Whether to fail if something is wrong.
    type: bool
    default: true
author:
  - The GridCore engineers
"""

EXAMPLES = r"""
- name: Look at what the role agent would be given
  idm.gridcore.check_variables:
    role: agent
    refuse: false
  register: checked
"""

RETURN = r"""
problems:
  description: One sentence for each thing that is wrong.
  type: list
  elements: str
  returned: always
"""
