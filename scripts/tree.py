#!/usr/bin/python3
"""The plan, and what it makes of QEMU's tree.

Knows which of this project's files and patches belong to which mail of the
series, what QEMU's files look like after each mail, and how to bring a copy of
QEMU's tree to that state while touching only what changes.  Both scripts/build
and scripts/series get it from here, so that what is built and what is mailed
are the same.  Knows nothing of compilers, of git, and of where QEMU comes from.

The format of the plan is told at its top, in patches/plan.

Copyright (c) 2026 the virtio-blk data plane authors

SPDX-License-Identifier: GPL-2.0-or-later
"""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / 'patches'
MESSAGES = PATCHES / 'messages'

# Leftovers of editors, patch and Python never belong to the tree.
LEFTOVERS = ('*~', '*.orig', '*.rej', '*.pyc', '*.swp', '.*', '__pycache__')

# Debian's source package comes without firmware images, but meson.build
# demands the EDK2 ones as soon as bzip2 is installed.  In the tree that is
# built (never in the series) they are not asked for where they are missing.
BLOBS_FILE = 'pc-bios/meson.build'
BLOBS_PROOF = 'pc-bios/edk2-x86_64-code.fd.bz2'
BLOBS_LINE = b'\nif unpack_edk2_blobs\n'
BLOBS_OFF = b'\nif false  # no firmware images in this source package\n'

# scripts/series has branches of these names besides those of the topics.
NO_TOPICS = ('all', 'base')

# Our stanza follows QEMU's own one for the device.
STANZA_AFTER = b'\nvirtio-blk\n'


class Wrong(Exception):
    """What is wrong and what to do about it, for the user."""


def is_leftover(name):
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFTOVERS)


def files_below(top):
    """All files below top, as sorted paths relative to it."""
    found = []
    for where, folders, names in os.walk(top):
        folders[:] = [f for f in folders if not is_leftover(f)]
        found += [os.path.relpath(os.path.join(where, n), top)
                  for n in names if not is_leftover(n)]
    return sorted(found)


def is_executable(path):
    return bool(path.stat().st_mode & 0o100)


class Patch:
    """A patch to files that QEMU has, with its message."""

    def __init__(self, name):
        self.name = name
        self.path = PATCHES / name
        text = self.path.read_text(encoding='utf-8')
        self.message = self._message(text)
        self.files = self._files(text)

    def _message(self, text):
        """Subject, empty line, body; without the mail's other headers."""
        head, _, rest = text.partition('\n\n')
        subject = re.search(r'^Subject: (.*(?:\n[ \t].*)*)', head, re.M)
        if not subject:
            raise Wrong(f'patches/{self.name} has no Subject: line; '
                        'write it as git format-patch does')
        title = re.sub(r'\s+', ' ', subject.group(1))
        title = re.sub(r'^\[[^]]*\] *', '', title)
        body = re.split(r'^(?:---|diff --git .*|--- a/.*)$', rest, maxsplit=1,
                        flags=re.M)[0]
        return f'{title}\n\n{body.strip()}'.strip()

    def _files(self, text):
        pairs = re.findall(r'^--- (\S+).*\n\+\+\+ (\S+)', text, re.M)
        if not pairs:
            raise Wrong(f'patches/{self.name} changes no file')
        for old, new in pairs:
            if '/dev/null' in (old, new):
                raise Wrong(f'patches/{self.name} adds or removes a file; '
                            'a new file stands at its own path instead')
            if old[:2] != 'a/' or new != 'b/' + old[2:]:
                raise Wrong(f'patches/{self.name}: the paths {old} and {new} '
                            'should be the same after a/ and b/')
        return [old[2:] for old, _ in pairs]


class Topic:
    """Mails that a subsystem can take by themselves, after some others'."""

    def __init__(self, name, needs, line):
        self.name = name
        self.needs = needs
        self.line = line


class Mail:
    """One mail of the series: its message, files and patches."""

    def __init__(self, slug, topic, line):
        self.slug = slug
        self.topic = topic
        self.line = line
        self.files = []
        self.patches = []
        self.maintainers = False

    def is_empty(self):
        return not (self.files or self.patches or self.maintainers)


class Plan:
    """patches/plan, read and checked against what is there."""

    def __init__(self):
        self.author = None
        self.overlay = []
        self.ours = []
        self.topics = []
        self.mails = []
        self._read()
        self.patches = {name: Patch(name) for name in self._series()}
        self.files = self._overlay_files()

    def _read(self):
        path = PATCHES / 'plan'
        if not path.exists():
            raise Wrong('patches/plan is missing; restore it')
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split('#', 1)[0].split()
            if words:
                self._directive(number, words[0], words[1:])
        if not self.author or not self.overlay:
            raise Wrong('patches/plan needs an author and an overlay line')

    def _directive(self, number, word, values):
        where = f'patches/plan:{number}'
        if word == 'author' and values:
            self.author = ' '.join(values)
        elif word in ('overlay', 'ours') and values:
            getattr(self, word).extend(v.rstrip('/') for v in values)
        elif word == 'topic' and values:
            self._begin_topic(where, number, values)
        elif word == 'mail' and len(values) == 1:
            self._begin_mail(where, number, values[0])
        elif word not in ('file', 'patch', 'maintainers'):
            raise Wrong(f'{where}: "{word}" is not understood; '
                        'the format is told at the top of the plan')
        elif not self.mails:
            raise Wrong(f'{where}: {word} stands before the first mail')
        elif word == 'maintainers' and not values:
            self.mails[-1].maintainers = True
        elif word != 'maintainers' and len(values) == 1:
            self._add(where, word, values[0])
        else:
            raise Wrong(f'{where}: {word} takes one name, maintainers none')

    def _begin_topic(self, where, number, values):
        names = [t.name for t in self.topics]
        name, needs = values[0], values[2:]
        if values[1:2] not in ([], ['on']) or len(values) == 2:
            raise Wrong(f'{where}: topic takes a name, and may take "on" and '
                        'the names of topics')
        if name in names or name in NO_TOPICS:
            raise Wrong(f'{where}: {name} is already the name of a branch')
        for need in needs:
            if need not in names:
                raise Wrong(f'{where}: no topic {need} stands before {name}')
        self.topics.append(Topic(name, needs, number))

    def _begin_mail(self, where, number, slug):
        if not self.topics:
            raise Wrong(f'{where}: mail {slug} stands before the first topic')
        if any(m.slug == slug for m in self.mails):
            raise Wrong(f'{where}: there are two mails {slug}')
        self.mails.append(Mail(slug, self.topics[-1].name, number))

    def numbers(self, topic):
        """Of the topic's mails; the first mail is 1."""
        return [i for i, mail in enumerate(self.mails, 1)
                if mail.topic == topic.name]

    def _add(self, where, word, name):
        for mail in self.mails:
            if name in mail.files + mail.patches:
                raise Wrong(f'{where}: {name} is already in mail {mail.slug}')
        items = self.mails[-1].files if word == 'file' \
            else self.mails[-1].patches
        items.append(name)

    @staticmethod
    def _series():
        """The patches in the order in which they are applied."""
        present = {p.name for p in PATCHES.glob('*.patch')}
        path = PATCHES / 'series'
        lines = path.read_text().splitlines() if path.exists() else []
        names = [n for n in (x.split('#', 1)[0].strip() for x in lines) if n]
        for name in names:
            if name not in present:
                raise Wrong(f'patches/series names {name}, which is not there')
            if names.count(name) > 1:
                raise Wrong(f'patches/series names {name} twice')
        for name in sorted(present - set(names)):
            raise Wrong(f'patches/{name} is not in patches/series; '
                        'add it there or remove it')
        return names

    def _overlay_files(self):
        def is_ours(path):
            return any(path == o or path.startswith(o + '/')
                       for o in self.ours)
        return [path for top in self.overlay
                for path in (f'{top}/{f}' for f in files_below(ROOT / top))
                if not is_ours(path)]

    def message(self, mail):
        """The mail's subject, empty line and body, without the sign-off."""
        path = MESSAGES / f'{mail.slug}.txt'
        if path.exists():
            text = path.read_text(encoding='utf-8').strip()
        elif len(mail.patches) == 1:
            text = self.patches[mail.patches[0]].message
        else:
            raise Wrong(f'mail {mail.slug} has no message; '
                        f'write patches/messages/{mail.slug}.txt')
        lines = text.splitlines()
        if len(lines) < 3 or lines[1]:
            raise Wrong(f'the message of mail {mail.slug} should be a subject,'
                        ' an empty line and a body')
        lines = [x for x in lines if not x.startswith('Signed-off-by:')]
        return '\n'.join(lines).strip() + f'\n\nSigned-off-by: {self.author}\n'

    def check(self):
        """Everything is in exactly one mail, and every mail can be written."""
        if not self.mails:
            raise Wrong('patches/plan has no mails; write them')
        planned = [f for m in self.mails for f in m.files]
        for name in planned:
            if name not in self.files:
                raise Wrong(f'patches/plan names {name}, which is no file of '
                            'the overlay')
        for name in self.files:
            if name not in planned:
                raise Wrong(f'{name} is in no mail; add it to patches/plan')
        self._check_patches()
        self._check_mails()
        for topic in self.topics:
            if not self.numbers(topic):
                raise Wrong(f'patches/plan:{topic.line}: topic {topic.name} '
                            'has no mails')

    def _check_patches(self):
        planned = [p for m in self.mails for p in m.patches]
        for name in planned:
            if name not in self.patches:
                raise Wrong(f'patches/plan names {name}, which is not in '
                            'patches/series')
        for name in self.patches:
            if name not in planned:
                raise Wrong(f'{name} is in no mail; add it to patches/plan')
        if planned != list(self.patches):
            raise Wrong('patches/plan and patches/series have the patches in '
                        'different orders; make them agree')

    def _check_mails(self):
        for mail in self.mails:
            if mail.is_empty():
                raise Wrong(f'patches/plan:{mail.line}: mail {mail.slug} is '
                            'empty')
            self.message(mail)
        if [m.maintainers for m in self.mails].count(True) != 1:
            raise Wrong('patches/plan should have "maintainers" in one mail')
        slugs = {m.slug for m in self.mails}
        for path in sorted(MESSAGES.glob('*')):
            if path.suffix != '.txt' or path.stem not in slugs:
                raise Wrong(f'patches/messages/{path.name} is of no mail')
        if not (PATCHES / 'cover-letter.txt').exists():
            raise Wrong('patches/cover-letter.txt is missing; write it')


class State:
    """The files that differ from the pristine tree: path to (bytes, mode)."""

    def __init__(self, plan, pristine):
        self.plan = plan
        self.pristine = Path(pristine)
        self.content = {}

    def original(self, path):
        """QEMU's own version, or None."""
        source = self.pristine / path
        if not source.is_file():
            return None
        return source.read_bytes(), is_executable(source)

    def add_file(self, path):
        if (self.pristine / path).exists():
            raise Wrong(f'{path} exists in QEMU; change it by a patch in '
                        'patches/ instead')
        source = ROOT / path
        self.content[path] = source.read_bytes(), is_executable(source)

    def add_patch(self, patch):
        """Apply in a scratch folder that holds just the files it touches."""
        with tempfile.TemporaryDirectory() as scratch:
            modes = {}
            for path in patch.files:
                data, modes[path] = self._before(patch, path)
                target = Path(scratch) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            self._run_patch(patch, scratch)
            for path, mode in modes.items():
                self.content[path] = (Path(scratch) / path).read_bytes(), mode

    def _before(self, patch, path):
        before = self.content.get(path) or self.original(path)
        if before is None or path in self.plan.files:
            raise Wrong(f'patches/{patch.name} changes {path}, which is no '
                        'file of QEMU')
        return before

    @staticmethod
    def _run_patch(patch, folder):
        run = subprocess.run(
            ['patch', '-p1', '--fuzz=0', '--force', '--no-backup-if-mismatch',
             '--reject-file=-', f'--input={patch.path}'],
            cwd=folder, stdin=subprocess.DEVNULL, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if run.returncode:
            failed = re.findall(r'^(?:patching file .*|Hunk .* FAILED.*|'
                                r'.*malformed.*)$', run.stdout, re.M)
            raise Wrong(f'patches/{patch.name} does not apply to this QEMU ('
                        + '; '.join(failed) + '); rebase it, or use the QEMU '
                        'release it was made for')

    def add_maintainers(self):
        """Put our stanza behind that of virtio-blk."""
        data, mode = self.content.get('MAINTAINERS') \
            or self.original('MAINTAINERS')
        start = data.find(STANZA_AFTER)
        end = data.find(b'\n\n', start + 1)
        stanza = ROOT / 'MAINTAINERS'
        if start < 0 or end < 0 or not stanza.exists():
            raise Wrong('cannot add the stanza: either MAINTAINERS is missing '
                        'here, or there is no virtio-blk in QEMU\'s')
        ours = stanza.read_bytes().strip()
        self.content['MAINTAINERS'] = \
            data[:end] + b'\n\n' + ours + data[end:], mode

    def add_mail(self, mail):
        for path in mail.files:
            self.add_file(path)
        for name in mail.patches:
            self.add_patch(self.plan.patches[name])
        if mail.maintainers:
            self.add_maintainers()

    def add_everything(self):
        """All that is there, whether or not a mail has it yet."""
        for path in self.plan.files:
            self.add_file(path)
        for patch in self.plan.patches.values():
            self.add_patch(patch)
        if (ROOT / 'MAINTAINERS').exists():
            self.add_maintainers()

    def add_mails(self, count):
        for mail in self.plan.mails[:count]:
            self.add_mail(mail)

    def do_without_blobs(self):
        """See BLOBS_FILE."""
        if not (self.pristine / BLOBS_PROOF).exists():
            data, mode = self.original(BLOBS_FILE)
            self.content[BLOBS_FILE] = data.replace(BLOBS_LINE, BLOBS_OFF), mode


def write_if_changed(path, data, executable):
    """Returns whether it had to be written.  The time of a file that is as it
    should be stays, so that what was built from it stays, too."""
    mode = 0o755 if executable else 0o644
    try:
        if not path.is_symlink() and path.read_bytes() == data \
           and is_executable(path) == executable:
            return False
    except OSError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.new')
    new.write_bytes(data)
    new.chmod(mode)
    new.replace(path)
    return True


def all_files(top):
    """Every file and symbolic link below top, save for Python's leftovers."""
    found = set()
    for where, folders, names in os.walk(top):
        folders[:] = [f for f in folders if f != '__pycache__']
        links = [f for f in folders if os.path.islink(os.path.join(where, f))]
        found.update(os.path.relpath(os.path.join(where, n), top)
                     for n in names + links)
    return found


def same_file(one, other):
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() \
            and os.readlink(one) == os.readlink(other)
    return one.is_file() and other.is_file() \
        and one.stat().st_size == other.stat().st_size \
        and is_executable(one) == is_executable(other) \
        and one.read_bytes() == other.read_bytes()


def copy_as_new(source, target):
    """With the time of now: what was built from what stood there is old."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f'.{target.name}.new')
    if new.is_symlink() or new.exists():
        new.unlink()
    if source.is_symlink():
        new.symlink_to(os.readlink(source))
    else:
        shutil.copyfile(source, new)
        shutil.copymode(source, new)
    new.replace(target)


class Tree:
    """The tree that is built, and the record of what was laid over it."""

    def __init__(self, folder, pristine, identity):
        self.folder = Path(folder)
        self.pristine = Path(pristine)
        self.record = Path(f'{folder}.record')
        self.identity = identity

    def sync(self, content, key):
        """Bring the tree to pristine plus content; returns what changed."""
        record = self._read_record()
        if record is None:
            self._sync_pristine(content)
            record = {'files': {}}
        elif record['key'] == key and self._is_intact(record['files']):
            return []
        elif not record['key']:
            self._remove_halves(record['files'])
        # An interrupted run must leave a record of all that it may have
        # written.
        hashes = {p: hashlib.sha256(d).hexdigest()
                  for p, (d, _) in content.items()}
        self._write_record('', {**record['files'], **hashes})
        changed = self._restore(set(record['files']) - set(content))
        changed += [p for p, (d, x) in content.items()
                    if write_if_changed(self.folder / p, d, x)]
        self._write_record(key, hashes)
        return sorted(changed)

    def _read_record(self):
        try:
            record = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return None
        if record['identity'] != self.identity or not self.folder.is_dir():
            return None
        return record

    def _write_record(self, key, files):
        new = self.record.with_name(self.record.name + '.new')
        new.write_text(json.dumps({'identity': self.identity, 'key': key,
                                   'files': files}, indent=1))
        new.replace(self.record)

    def _is_intact(self, files):
        try:
            return all(digest == hashlib.sha256(
                           (self.folder / path).read_bytes()).hexdigest()
                       for path, digest in files.items())
        except OSError:
            return False

    def _remove_halves(self, paths):
        """An interrupted run may have left a file under its first name."""
        for path in map(self.folder.joinpath, paths):
            path.with_name(f'.{path.name}.new').unlink(missing_ok=True)

    def _restore(self, paths):
        for path in paths:
            if (self.pristine / path).exists():
                copy_as_new(self.pristine / path, self.folder / path)
            elif (self.folder / path).exists():
                (self.folder / path).unlink()
        return list(paths)

    def _sync_pristine(self, content):
        """The whole tree, file by file, but for what is laid over it."""
        self.record.unlink(missing_ok=True)
        wanted = all_files(self.pristine)
        for path in wanted - set(content):
            if not same_file(self.pristine / path, self.folder / path):
                copy_as_new(self.pristine / path, self.folder / path)
        for path in all_files(self.folder) - wanted - set(content):
            (self.folder / path).unlink()


def sync_key(plan, extra):
    """Changes whenever anything does that the tree is made of."""
    digest = hashlib.sha256(repr(extra).encode())
    paths = [Path(__file__), PATCHES / 'plan', ROOT / 'MAINTAINERS']
    paths += [patch.path for patch in plan.patches.values()]
    paths += [ROOT / path for path in plan.files]
    for path in paths:
        if path.exists():
            digest.update(f'{path} {is_executable(path)}\n'.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def command_sync(args):
    """Make the tree that is built; print what changed in it."""
    plan = Plan()
    state = State(plan, args.pristine)
    if args.mails is None:
        state.add_everything()
    else:
        state.add_mails(args.mails)
    state.do_without_blobs()
    key = sync_key(plan, (args.identity, args.mails))
    tree = Tree(args.tree, args.pristine, args.identity)
    for path in tree.sync(state.content, key):
        print(path)


def command_import(args):
    """Copy somebody's QEMU tree; print a digest of what it looks like."""
    source, target = Path(args.source), Path(args.target)

    def is_skipped(name):
        folder = source / name
        return name == '.git' or any((folder / mark).exists() for mark in
                                     ('meson-private', 'config-host.mak'))
    skipped = tuple(f'{n}/' for n in os.listdir(source) if is_skipped(n))
    wanted = {p for p in all_files(source)
              if p != '.git' and not p.startswith(skipped)}
    digest = hashlib.sha256()
    for path in sorted(wanted):
        info = os.lstat(source / path)
        look = f'{path} {info.st_size} {info.st_mtime_ns} {info.st_mode}\n'
        digest.update(look.encode())
        copy_if_changed(source / path, target / path, info)
    for path in all_files(target) - wanted:
        (target / path).unlink()
    print(digest.hexdigest())


def copy_if_changed(source, target, info):
    """By size and time; keeps the time, by which the next run compares."""
    try:
        there = os.lstat(target)
        if (there.st_size, there.st_mtime_ns, there.st_mode) == \
           (info.st_size, info.st_mtime_ns, info.st_mode):
            return
    except OSError:
        pass
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f'.{target.name}.new')
    new.unlink(missing_ok=True)
    shutil.copy2(source, new, follow_symlinks=False)
    new.replace(target)


def command_check(_args):
    """Check the plan; print how many mails there are."""
    plan = Plan()
    plan.check()
    print(len(plan.mails))


def command_topics(_args):
    """Print each topic: its name, first and last mail, and what it needs."""
    plan = Plan()
    for topic in plan.topics:
        numbers = plan.numbers(topic)
        print(topic.name, numbers[0], numbers[-1], *topic.needs)


def command_author(_args):
    print(Plan().author)


def command_message(args):
    plan = Plan()
    sys.stdout.write(plan.message(plan.mails[args.number - 1]))


def command_state(args):
    """Write all files that the series touches, as they are in QEMU."""
    plan = Plan()
    state = State(plan, args.pristine)
    state.add_mails(len(plan.mails))
    for path in state.content:
        value = state.original(path)
        if value:
            write_if_changed(Path(args.folder) / path, *value)


def command_step(args):
    """Take a folder from the state before a mail to that after it."""
    plan = Plan()
    state = State(plan, args.folder)
    state.add_mail(plan.mails[args.number - 1])
    for path, value in state.content.items():
        write_if_changed(Path(args.folder) / path, *value)


def command_compare(args):
    """The built tree must be the pristine one plus what the mails made."""
    mailed = {p for p in all_files(args.mailed) if not p.startswith('.git/')}
    pristine, tree = Path(args.pristine), Path(args.tree)
    allowed = State(None, pristine)
    allowed.do_without_blobs()
    wrong = [f'{p} differs' for p in mailed
             if not same_file(Path(args.mailed) / p, tree / p)]
    before, after = all_files(pristine), all_files(tree)
    wrong += [f'{p} is in one of both only'
              for p in (before ^ after) - mailed]
    wrong += [f'{p} is changed by no mail'
              for p in (before & after) - mailed - set(allowed.content)
              if not same_file(pristine / p, tree / p)]
    if wrong:
        raise Wrong('the mailed tree and the built tree differ:\n  '
                    + '\n  '.join(sorted(wrong)))
    uncovered = [p for p in mailed - before if not is_covered(p)]
    if uncovered:
        raise Wrong('no F: line in MAINTAINERS covers '
                    + ', '.join(sorted(uncovered)))


def is_covered(path):
    """Whether an F: pattern of our stanza matches, as get_maintainer.pl does:
    a pattern that ends in / covers all below, * does not cross a /."""
    for pattern in re.findall(r'^F:\s*(\S+)',
                              (ROOT / 'MAINTAINERS').read_text(), re.M):
        expression = re.escape(pattern).replace(r'\*', '[^/]*') \
                                       .replace(r'\?', '[^/]')
        if re.fullmatch(expression + ('.*' if pattern[-1] == '/' else ''),
                        path):
            return True
    return False


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = parser.add_subparsers(required=True)

    def command(function, *names):
        one = sub.add_parser(function.__name__.split('_')[1],
                             help=(function.__doc__ or '').split('\n')[0])
        for name in names:
            one.add_argument(name, type=int if name in ('number', 'mails')
                             else str)
        one.set_defaults(run=function)
        return one
    command(command_import, 'source', 'target')
    command(command_sync, 'pristine', 'tree', 'identity').add_argument(
        '--mails', type=int, help='only the first MAILS mails')
    command(command_check)
    command(command_topics)
    command(command_author)
    command(command_message, 'number')
    command(command_state, 'pristine', 'folder')
    command(command_step, 'number', 'folder')
    command(command_compare, 'pristine', 'tree', 'mailed')
    return parser.parse_args()


def main():
    args = parse()
    try:
        args.run(args)
    except (Wrong, OSError, UnicodeDecodeError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
