#!/usr/bin/env python3
"""The figures that tests and benchmarks rest on, on made-up heartbeats with known answers."""

import unittest

import heartbeats
from heartbeats import Beat


def beats_of(times, stream="a", first_counter=1, pages_per_beat=10):
    return [
        Beat(
            at, first_counter + n, int(at * 1e6), (first_counter + n) * pages_per_beat, 0, 0, stream
        )
        for n, at in enumerate(times)
    ]


def regular(start, end, **more):
    count = round((end - start) / 0.01)
    return beats_of([start + n * 0.01 for n in range(count)], **more)


class Parsing(unittest.TestCase):
    def test_takes_a_whole_line(self):
        beat = heartbeats.parse_beat(b"H 7 123456 40 50 1", 2.5, "qemu-1")
        self.assertEqual(beat, Beat(2.5, 7, 123456, 40, 50, 1, "qemu-1"))

    def test_refuses_half_a_line(self):
        self.assertIsNone(heartbeats.parse_beat(b"H 7 1234", 0, ""))

    def test_refuses_other_text(self):
        self.assertIsNone(heartbeats.parse_beat(b"PF-READY pages=1", 0, ""))


class Counters(unittest.TestCase):
    def test_good_counters_have_no_fault(self):
        self.assertEqual(heartbeats.counter_faults(regular(1.0, 2.0)), [])

    def test_lost_line_is_named(self):
        beats = regular(1.0, 2.0)
        del beats[50]
        self.assertEqual(heartbeats.counter_faults(beats), ["1 heartbeats lost after 50 (a -> a)"])

    def test_repeated_line_is_named(self):
        beats = regular(1.0, 1.1)
        self.assertEqual(len(heartbeats.counter_faults(beats + beats[-1:])), 1)

    def test_clock_that_goes_back_is_named(self):
        one, two = beats_of([1.0, 1.01])
        back = Beat(two.at, two.counter, one.guest_us - 5, 0, 0, 0, "a")
        self.assertEqual(len(heartbeats.repeated_counters([one, back])), 1)

    def test_streams_one_after_the_other_are_fine(self):
        beats = regular(1.0, 1.5) + regular(1.6, 2.0, stream="b", first_counter=51)
        self.assertEqual(heartbeats.interleaved_streams(beats), [])

    def test_an_old_stream_that_goes_on_is_a_violation(self):
        beats = (
            regular(1.0, 1.5)
            + regular(1.6, 1.7, stream="b", first_counter=51)
            + regular(1.7, 1.72, first_counter=61)
        )
        self.assertEqual(len(heartbeats.interleaved_streams(beats)), 2)


class Figures(unittest.TestCase):
    def setUp(self):
        # Runs until 2.0, silent, runs again from 2.1 on
        self.beats = regular(1.0, 2.0) + regular(2.1, 4.0, stream="b", first_counter=101)

    def test_silence_is_the_gap(self):
        self.assertAlmostEqual(heartbeats.silence_around_s(self.beats, 1.5, 3.0), 2.1 - 1.99)

    def test_silence_elsewhere_does_not_count(self):
        self.assertAlmostEqual(heartbeats.silence_around_s(self.beats, 2.5, 3.0), 0.01)

    def test_silence_after_resume_counts_from_resume(self):
        self.assertAlmostEqual(heartbeats.longest_silence_s(self.beats, 2.07, 3.0), 0.03)

    def test_silence_that_lasts_to_the_end_counts(self):
        self.assertAlmostEqual(heartbeats.longest_silence_s(self.beats, 3.0, 5.0), 5.0 - 3.99)

    def test_percentage_of_an_undisturbed_second(self):
        self.assertAlmostEqual(heartbeats.percentage(self.beats, 2.595, 1.0), 100.0)

    def test_percentage_counts_missing_beats(self):
        self.assertAlmostEqual(heartbeats.percentage(self.beats, 1.595, 1.0), 90.0, delta=1.0)

    def test_work_is_what_the_counters_say(self):
        self.assertAlmostEqual(heartbeats.work(self.beats, 2.5, 1.0), 1000.0)

    def test_work_in_a_span_with_silence_is_less(self):
        self.assertAlmostEqual(heartbeats.work(self.beats, 1.5, 1.0), 900.0, delta=20)


if __name__ == "__main__":
    unittest.main()
