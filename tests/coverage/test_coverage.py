#!/usr/bin/python3
"""Tests of scripts/coverage: whose claim is whose, and what is refused.

Copyright (c) 2026 the virtio-blk data plane authors

SPDX-License-Identifier: GPL-2.0-or-later
"""

import importlib.machinery
import importlib.util
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts/coverage'


def load():
    """The script as a module, although its name has no suffix."""
    loader = importlib.machinery.SourceFileLoader('coverage_table',
                                                  str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


coverage = load()


def owners(claims):
    """By id: who claims it."""
    found = {}
    for claim in claims:
        for one in claim.ids:
            found.setdefault(one, set()).add(claim.who)
    return found


C_FILE = '''
/* All of it; covers: A-1 */
#include "x.h"
typedef struct Row { const char *name; int x; } Row;

/* covers: B-1, B-2 (in part), B-3: and D9 is prose */
static void test_one(const void *opaque)
{
    static const Row inner[] = { { "word", 1 }, { "C-1 text", 2 } };
    if (x) {
        /* covers: C-2 */
        call("covers: Z-1", '{');
    }
}

static const Row rows[] = {
    /* covers: E-1 */
    { "first", 1 },
    { .name = "second", .x = 2 },
    /* of nobody */
    { "third", 3 },
    /* covers: E-2 */

    { "fourth", 4 }, {
        /* covers: E-3 */
        .name = "fifth",
        .list = { { 1 }, { 2 } },
    },
};

/* covers: F-1 */
static const Row all[] = { { "x", 1 }, { "y", 2 } };

static const Row named_by_ids[] = { { "G-1, G-2", 1 }, { "G-3 beyond", 2 } };

static void test_user(void)
{
    use(named_by_ids);
}

int main(void)
{
    static const Test tests[] = { { "one", test_one }, { "user", test_user } };
}
'''

PYTHON_FILE = '''#!/usr/bin/python3
"""Some tests; covers: A-1"""

# covers: B-1,
# B-2: more
def first():
    """covers: B-3"""
    return 'covers: Z-1'

class Group:
    @mark
    def second(self):
        pass  # covers: C-1
'''

SHELL_FILE = '''#!/bin/bash
# covers: A-1

# covers: B-1
one() {
    # covers: B-2
    true
}

# covers: C-1
two
'''

LIST = '''# comment
== A Things
    untested: nobody has
      the time
A-1 | plane | One.
A-2 | ring | Two.
    note: differs
A-3 | parser | Three.
    untested: cannot
'''


class Claims(unittest.TestCase):
    """Whose claim is whose."""

    def test_c(self):
        self.assertEqual(owners(coverage.claims_of_c(C_FILE)), {
            'A-1': {None}, 'B-1': {'one'}, 'B-2': {'one'}, 'B-3': {'one'},
            'C-1': {'one'}, 'C-2': {'one'}, 'E-1': {'first', 'second'},
            'E-3': {'fifth'}, 'F-1': {'x', 'y'}, 'G-1': {'user'},
            'G-2': {'user'}, 'G-3': {'user'}})

    def test_python(self):
        self.assertEqual(owners(coverage.claims_of_python(PYTHON_FILE)), {
            'A-1': {None}, 'B-1': {'first'}, 'B-2': {'first'},
            'B-3': {'first'}, 'C-1': {'Group.second'}})

    def test_shell(self):
        self.assertEqual(owners(coverage.claims_of_shell(SHELL_FILE)), {
            'A-1': {None}, 'B-1': {'one'}, 'B-2': {'one'}, 'C-1': {None}})

    def test_model(self):
        text = '/* What\n * covers: A-1,\n * A-2 */\nproctype p() { skip }'
        self.assertEqual(owners(coverage.claims_of_promela(text)),
                         {'A-1': {None}, 'A-2': {None}})

    def test_no_ids(self):
        with self.assertRaisesRegex(coverage.Wrong, 'line 2: no id'):
            coverage.claims_of_c('\n/* covers: everything */\nint x;')


class Problems(unittest.TestCase):
    """What is refused."""

    def told(self, text, covered):
        claims = {name: {('t.c', 'case'): 7} for name in covered}
        return list(coverage.problems(coverage.Requirements(text), claims))

    def test_good(self):
        self.assertEqual(self.told(LIST, ['A-1']), [])

    def test_unknown_id(self):
        told = self.told(LIST, ['A-1', 'A-9'])
        self.assertEqual(len(told), 1)
        self.assertRegex(told[0], '^t.c:7: A-9 is no id')

    def test_neither_test_nor_reason(self):
        text = LIST.replace('    untested: nobody has\n      the time\n', '')
        told = self.told(text, ['A-1'])
        self.assertEqual(len(told), 1)
        self.assertRegex(told[0], '^A-2: no test names it')

    def test_reason_for_what_is_tested(self):
        self.assertRegex(self.told(LIST, ['A-3'])[0], '^A-3: t.c tests it')

    def test_section_without_need(self):
        self.assertRegex(self.told(LIST, ['A-1', 'A-2'])[0], '^A: all rows')

    def test_ids_in_code(self):
        text = '/* See A-1 and 2.7.8 */\nint A_1 = XA-1;\n/* (A-9, A-3) */'
        rows = coverage.Requirements(LIST).rows
        self.assertEqual(list(coverage.ids_in_code(rows, text)),
                         [(1, 'A-1'), (3, 'A-3')])

    def test_bad_lists(self):
        for line, text in (('A-1 | plane | Again.', 'there already'),
                           ('A-4 | nobody | Four.', 'is none of'),
                           ('B-1 | plane | Five.', 'is no id of section'),
                           ('A-5 | plane', 'write "ID'),
                           ('    reason: x', 'begins with')):
            with self.assertRaisesRegex(coverage.Wrong, text):
                coverage.Requirements(LIST + line + '\n')


class Page(unittest.TestCase):
    """What stands in the page of what no test covers."""

    def test_reasons(self):
        text = coverage.page(coverage.Requirements(LIST), {})
        self.assertIn('A: Things\n---------\n\n'
                      '* A-1, A-2: nobody has the time\n* A-3: cannot\n', text)

    def test_no_test_changes_it(self):
        rows = coverage.Requirements(LIST)
        claims = {'A-1': {('t.c', 'a'): 1}}
        text = coverage.page(rows, claims)
        self.assertNotIn('A-1', text)
        claims['A-1'][('u.c', 'b')] = 2
        self.assertEqual(coverage.page(rows, claims), text)

    def test_all_tested(self):
        rows = coverage.Requirements(LIST)
        claims = {name: {('t.c', 'a'): 1} for name in rows.rows}
        self.assertEqual(coverage.page(rows, claims),
                         coverage.PAGE_HEAD.rstrip() + '\n')

    def test_whole_section(self):
        rows = coverage.Requirements('== B Bees\n    untested: none flies\n'
                                     'B-1 | plane | One.\nB-2 | ring | Two.\n')
        self.assertIn('B: Bees\n-------\n\n* All: none flies\n',
                      coverage.page(rows, {}))


class Table(unittest.TestCase):
    """What is written."""

    def test_rows(self):
        text = coverage.table(coverage.Requirements(LIST), {
            'A-1': {('tests/u.c', '/vring/u/b_c'): 3, ('tests/u.c', 'a'): 2}})
        self.assertIn('``u``: a, b_c\n', text)
        self.assertIn('*Not tested.* nobody has the time\n\n       *Note.* '
                      'differs', text)
        self.assertRegex(text, r'A +Things +1 +2\n')


if __name__ == '__main__':
    unittest.main()
