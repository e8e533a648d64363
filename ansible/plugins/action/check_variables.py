"""The action `check_variables`; its documentation is with the module of that name."""

from ansible.errors import AnsibleError
from ansible.utils.vars import load_extra_vars
from ansible_collections.idm.gridcore.plugins.plugin_utils import kinds, variables

from ansible.plugins.action import ActionBase

PREFIXES = ("gridcore_", "task_", "node_")


class ActionModule(ActionBase):
    """Looks at variables as the host sees them; nothing is done on the host."""

    _requires_connection = False
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Find out what is wrong, and fail with all of it unless `refuse` is false."""
        result = super().run(tmp, task_vars)
        _, wanted = self.validate_argument_spec(
            argument_spec={"role": {"type": "str"}, "refuse": {"type": "bool", "default": True}}
        )
        self._vars = task_vars
        role, fleet = wanted["role"], variables.fleet_kinds()
        # What others need may not be there yet, such as a token that the hub is still to make.
        needed = set(variables.fleet_names(role).values()) if role else set(variables.OF_PLAYBOOKS)
        problems = [
            *self._strangers(fleet),
            *self._wrong({name: kind for name, kind in fleet.items() if name in task_vars}, needed),
            *(self._of_role(role) if role else self._of_playbooks()),
        ]
        # A role's own checks count with values that are of the right kind.
        if role and not problems:
            problems = self._value(f"{role}_problems", [])
        problems = list(dict.fromkeys(str(problem) for problem in problems))
        result.update(changed=False, problems=problems)
        if problems and wanted["refuse"]:
            result.update(failed=True, msg="\n".join(problems))
        return result

    def _strangers(self, fleet):
        names = [name for name in self._vars if name.startswith("gridcore_") and name not in fleet]
        return [variables.unknown(name, fleet) for name in sorted(names)]

    def _of_role(self, role):
        taken = variables.fleet_names(role)
        # What stands in the fleet's variable is told with the fleet's name.
        own = {
            name: kind
            for name, kind in variables.role_kinds(role).items()
            if name in self._vars and taken.get(name) not in self._vars
        }
        return self._wrong(own, own)

    def _of_playbooks(self):
        given = load_extra_vars(self._loader)
        known = {**variables.PLAYBOOKS, **variables.fleet_kinds()}
        for name in sorted(set(given) - set(known)):
            if name.startswith(PREFIXES):
                yield variables.unknown(name, known)
            elif why := variables.misspelt(name, variables.PLAYBOOKS):
                yield why
        wanted = {name: kind for name, kind in variables.PLAYBOOKS.items() if name in given}
        yield from self._wrong(wanted, wanted)

    def _wrong(self, wanted, needed):
        for name, kind in wanted.items():
            value = self._value(name, ...)
            if value is ...:
                continue
            if isinstance(value, AnsibleError):
                if name in needed:
                    yield f"{name} cannot be made out{self._why(name, value)}"
            elif value == "" and name in variables.MAY_BE_EMPTY:
                continue
            elif why := kinds.problem(name, value, kind):
                yield why

    def _why(self, name, error):
        missing = sorted(variables.names_in(self._vars[name]) - set(self._vars))
        if missing:
            return f": it names {', '.join(missing)}, not defined here"
        # The error may quote the value.
        return "" if kinds.SECRET.search(name) else f": {error}"

    def _value(self, name, default):
        """The value, the error that it makes, or the default where it takes a look at the host first."""
        if name not in self._vars:
            return default
        try:
            return self._templar.template(self._vars[name])
        except AnsibleError as error:
            is_looked_at = "architecture" in self._vars.get("ansible_facts", {})
            return error if is_looked_at or not self._needs_facts(name, set()) else default

    def _needs_facts(self, name, seen):
        names = variables.names_in(self._vars.get(name)) - seen
        return "ansible_facts" in names or any(
            self._needs_facts(other, seen | names) for other in names if other in self._vars
        )
