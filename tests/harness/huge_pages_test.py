#!/usr/bin/env python3
"""Tests that need 2 MiB pages take turns, in Python and in C++ (tests/kernel/huge_pages_test.cc says the same)."""

import fcntl
import unittest

import huge_pages


class Turns(unittest.TestCase):
    def test_nobody_else_has_one_while_a_test_uses_them(self):
        with huge_pages.reserved(0), open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") as other:
            with self.assertRaises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


if __name__ == "__main__":
    unittest.main()
