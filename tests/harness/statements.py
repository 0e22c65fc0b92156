"""How a test program says what holds: one line a statement, and the end at the first that does not."""


def expect(condition, what):
    print(f"{'ok  ' if condition else 'FAIL'} {what}", flush=True)
    if not condition:
        raise SystemExit(1)
