#!/bin/sh
# Runs on the controller while the Python base image is made; $1 is the image's root.
# What no worker needs goes: Perl (Debian's package tools want it), character tables, and the package lists.
set -eu
root="$1"
rm -rf "$root"/usr/share/perl* "$root"/usr/lib/*/perl* "$root"/usr/bin/perl* \
    "$root"/usr/lib/*/gconv "$root"/usr/lib/python3*/pydoc_data "$root"/usr/share/zoneinfo \
    "$root"/var/cache/* "$root"/var/lib/apt "$root"/usr/share/bash-completion "$root"/usr/lib/*/libperl* \
    "$root"/usr/share/unicode "$root"/var/log/*
