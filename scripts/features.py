#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What Debian configures QEMU with, read from its packaging.

debian/rules gives configure some options. The others stand in debian/control,
in comments between the build dependencies: the packages behind a comment are
what its options need. A host that lacks one of these packages cannot have them.
Knows the two files and nothing of a host.

  features.py packages DEBIAN           print the packages, one per line
  features.py options DEBIAN [LACKING...]
                                        print the options, one per line, if a
                                        host lacks the packages LACKING
  features.py lost DEBIAN [LACKING...]  print "FEATURE PACKAGE" for each feature
                                        that such a host cannot have
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple, Set, Tuple

#: the machine for which the binary is built, in the words of debian/control
MACHINE = {'amd64', 'linux-amd64', 'linux-any', 'any'}

#: what debian/rules says for packages, and does not suit a binary that runs
#: where it was built: it finds its files beside itself, and no module can be
#: forgotten or stale when there is none
FOR_PACKAGES = {'--enable-modules', '--enable-module-upgrades',
                '--disable-relocatable', '--disable-strip'}

#: for another binary of Debian's, without KVM
FOR_XEN = {'libxen-dev'}


class Group(NamedTuple):
    """Options, and the packages that all of them need."""

    options: List[str]
    packages: List[str]


def applies(restriction: str) -> bool:
    """What stands behind a name: machines in [], build profiles in <>."""
    machines = re.search(r'\[([^]]*)\]', restriction)
    if machines and not MACHINE & set(machines[1].split()):
        return False
    return '<' not in restriction


def packages_of(text: str) -> List[str]:
    """A part of a field such as Build-Depends-Arch."""
    found = []
    for item in text.replace('\n', ' ').split(','):
        match = re.match(r'\s*([a-z0-9][a-z0-9.+-]*)(?::\w+)?(.*)', item)
        if match and applies(match[2]) and match[1] not in FOR_XEN:
            found.append(match[1])
    return found


def options_of(comment: str) -> List[str]:
    """Of a comment "# --enable-x --enable-y<tab>MACHINE...<tab># REMARK"."""
    options, machines, *_ = comment.lstrip('# ').split('\t') + ['']
    if machines.strip() and not MACHINE & set(machines.split()):
        return []
    return options.split()


def groups(control: str) -> Iterator[Group]:
    """Those of debian/control; the first has no options."""
    field = re.search(r'^Build-Depends-Arch:(.*?)^[A-Z]', control, re.M | re.S)
    if not field:
        raise ValueError('debian/control has no Build-Depends-Arch')
    options: List[str] = []
    text = ''
    for line in field[1].split('\n'):
        if re.match(r'# ?--', line):
            yield Group(options, packages_of(text))
            options, text = options_of(line), ''
        elif not line.startswith('#'):
            text += line + '\n'
    yield Group(options, packages_of(text))


def options_of_rules(rules: str) -> List[str]:
    """Those that debian/rules itself gives for QEMU's main build."""
    common = re.findall(r'^common_configure_opts *\+?= *((?:.*\\\n)*.*)$',
                        rules, re.M)
    recipe = re.search(r'^b/qemu/configured:.*\n((?:\t.*\n)*)', rules, re.M)
    if not common or not recipe:
        raise ValueError('debian/rules does not configure as it did')
    words = ' '.join([*common, recipe[1]]).split()
    return [word for word in words if word not in FOR_PACKAGES
            and re.fullmatch(r'--(en|dis)able-[a-z0-9-]+', word)]


def split(found: List[Group], lacking: Set[str]) -> Tuple[
        List[str], List[Tuple[str, str]]]:
    """The options for configure, and the features that are lost, each with a
    package that it needs."""
    options: List[str] = []
    lost: List[Tuple[str, str]] = []
    for group in found:
        missing = sorted(lacking & set(group.packages))
        if not missing:
            options += group.options
            continue
        for option in group.options:
            feature = re.match(r'--enable-(.+)', option)
            if feature:
                options.append('--disable-' + feature[1])
            # A list of drivers is left to configure, which finds what is there.
            name = feature[1] if feature else option.lstrip('-')
            lost.append((name, missing[0]))
    return options, lost


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('packages', 'options', 'lost'))
    parser.add_argument('debian', type=Path)
    parser.add_argument('lacking', nargs='*')
    args = parser.parse_args()
    try:
        found = list(groups((args.debian / 'control').read_text('utf-8')))
        rules = options_of_rules((args.debian / 'rules').read_text('utf-8'))
        options, lost = split(found, set(args.lacking))
        if not options:
            raise ValueError('debian/control names no option')
    except (OSError, ValueError) as error:
        print(f'{args.debian}: {error}', file=sys.stderr)
        return 1
    if args.what == 'packages':
        lines = [name for group in found for name in group.packages]
    elif args.what == 'options':
        lines = rules + options
    else:
        lines = [f'{feature} {package}' for feature, package in lost]
    print('\n'.join(dict.fromkeys(lines)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
