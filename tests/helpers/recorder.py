"""A recorder of CUDA graphs that needs no GPU."""


class FakeRecorder:
    """Replays by running the work again into the same tensors, as a CUDA graph does; ``calls`` tells what was asked.

    A subclass says what replays fill: ``blank(run)`` makes it from the work, ``fill(static, result)`` fills it.

    Args:
        wrong: Message of the error that a recording raises; None: it succeeds.
    """

    def __init__(self, wrong=None):
        self.wrong, self.calls = wrong, []

    def warm_up(self, run):
        self.calls.append("warm up")
        return run()

    def record(self, run):
        self.calls.append("record")
        if self.wrong:
            raise RuntimeError(self.wrong)
        static = self.blank(run)

        def replay():
            self.calls.append("replay")
            self.fill(static, run())

        return replay, static
