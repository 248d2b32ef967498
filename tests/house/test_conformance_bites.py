"""The conformance suite finds what it is there to find: for every law a planted fault, and no fault without one."""

import numpy as np
import pytest

from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.testing import dual, sink, sketch, source


def bites(law, *args):
    """The law fails, and says so as an assertion."""
    with pytest.raises(AssertionError):
        law(*args)


def unharmed(laws, faults):
    """Every law has a fault planted for it."""
    assert [law.__name__ for law in laws] == list(faults)


class Meddled(HeadAttention):
    """A sketch with a fault: `before` may change (k, c), `after` what was answered or kept."""

    def __init__(self, params, state=None):
        super().__init__(params, state)
        self.rows_here = 0  # forgotten when the state moves on

    def before(self, k, c, work):
        return k, c

    def after(self, out, work, how):
        pass

    def absorb(self, k, c, work):
        self.rows_here += len(k)
        super().absorb(*self.before(k, c, work), work)
        self.after(np.zeros((1, len(k), 1)), work, "absorb")

    def step(self, q, k, c, out, work):
        self.rows_here += len(k)
        super().step(q, *self.before(k, c, work), out, work)
        self.after(out, work, "step")

    def answer(self, q, start, out, work):
        super().answer(q, start, out, work)
        self.after(out, work, "answer")


class ExtraArray(Meddled):
    def after(self, out, work, how):
        self.state["secret"] = np.zeros(3)


class SeesTheCut(Meddled):
    def after(self, out, work, how):
        out *= 1 + 1e-6 * out.shape[1]


class AbsorbsDifferently(Meddled):
    def after(self, out, work, how):
        self.state["counters"][3] += how == "absorb"


class Forgets(Meddled):
    def after(self, out, work, how):
        out += 1e-6 * self.rows_here


class NotShiftInvariant(Meddled):
    def before(self, k, c, work):
        return np.clip(k, -1, 1), c


class NotLinear(Meddled):
    def after(self, out, work, how):
        out += np.float32(0.1)


class CountsTheDead(Meddled):
    def before(self, k, c, work):
        return k, np.where(np.arange(c.shape[1]) == c.shape[1] - 1, 1, c).astype(c.dtype)


class NotExact(Meddled):
    def after(self, out, work, how):
        out *= 1.001


class OutOfRange(Meddled):
    def after(self, out, work, how):
        out *= 3


class AnswersLeaveTraces(Meddled):
    def after(self, out, work, how):
        self.state["counters"][3] += how == "answer"


class HeadsMeet(Meddled):
    def after(self, out, work, how):
        out[:] = out.mean(axis=0)


class ReadsScratch(Meddled):
    def before(self, k, c, work):
        return k + 0 * work["tile"][0, 0], c


SKETCH_FAULTS = {
    "state_follows_from_params": ExtraArray,
    "any_cut_gives_the_same_bytes": SeesTheCut,
    "absorb_and_step_make_the_same_state": AbsorbsDifferently,
    "resuming_changes_nothing": Forgets,
    "adding_a_vector_to_all_keys_changes_nothing": NotShiftInvariant,
    "scaling_values_scales_outputs": NotLinear,
    "rows_of_weight_zero_count_for_nothing": CountsTheDead,
    "a_stream_within_the_window_is_exact": NotExact,
    "outputs_lie_in_the_range_of_the_values": OutOfRange,
    "answering_changes_nothing": AnswersLeaveTraces,
    "queries_in_any_cut_get_the_same_bytes": SeesTheCut,
    "heads_do_not_see_each_other": HeadsMeet,
    "scratch_carries_nothing": ReadsScratch,
}


@pytest.mark.parametrize("law", sketch.SKETCH_LAWS, ids=lambda law: law.__name__)
def test_sketch_laws(law):
    unharmed(sketch.SKETCH_LAWS, SKETCH_FAULTS)
    params = HeadParams(3, 2, 0.5, sinks=2, window=20, group=16)
    law(sketch.SketchCase(params, Meddled))
    bites(law, sketch.SketchCase(params, SKETCH_FAULTS[law.__name__]))


class WrongScale(ExactQueries):
    def __init__(self, q, positions, value_dim, scale):
        super().__init__(q, positions, value_dim, scale * 1.01)


class KeysCut(ExactQueries):
    def absorb(self, k, c, work):
        super().absorb(k, c, work)
        self.y *= 1 + 1e-9 * len(k)


class MoreBytes(ExactQueries):
    @staticmethod
    def projected_bytes(*args):
        return ExactQueries.projected_bytes(*args) - 8


class ClippedKeys(ExactQueries):
    def absorb(self, k, c, work):
        super().absorb(np.clip(k, -1, 1), c, work)


class Offset(ExactQueries):
    def outputs(self, out):
        super().outputs(out)
        out += 0.1


class DeadKeys(ExactQueries):
    def absorb(self, k, c, work):
        super().absorb(k, np.where(np.arange(c.shape[1]) == c.shape[1] - 1, 1, c).astype(c.dtype), work)


class SeesTheFuture(ExactQueries):
    def __init__(self, q, positions, value_dim, scale):
        super().__init__(q, positions + 3, value_dim, scale)


DUAL_FAULTS = {
    "answers_are_exact_attention": WrongScale,
    "any_cut_of_the_keys_gives_the_same_bytes": KeysCut,
    "held_bytes_are_those_projected": MoreBytes,
    "adding_a_vector_to_all_keys_changes_nothing": ClippedKeys,
    "scaling_values_scales_outputs": Offset,
    "rows_of_weight_zero_count_for_nothing": DeadKeys,
    "rows_after_a_query_are_not_seen": SeesTheFuture,
}


@pytest.mark.parametrize("law", dual.DUAL_LAWS, ids=lambda law: law.__name__)
def test_dual_laws(law):
    unharmed(dual.DUAL_LAWS, DUAL_FAULTS)
    bites(law, dual.DualCase(make=DUAL_FAULTS[law.__name__]))


# --- sources

ITEMS = np.random.default_rng(1).standard_normal((1, 3000, 12)).astype("f4")


class WrongFacts(MemoryTensor):
    def __init__(self, array):
        super().__init__(array)
        self.rows -= 1


class OneRowTwice(MemoryTensor):
    def read_into(self, buf, start):
        return super().read_into(buf, max(0, start - 1))


class OnlyForward(MemoryTensor):
    at = 0

    def read_into(self, buf, start):
        got = super().read_into(buf, self.at)
        self.at = min(self.at + got, self.rows)
        return got


class PeekConsumes(OnlyForward):
    def peek(self, n):
        buf = np.empty((1, min(n, self.rows - self.at), self.width), "f4")
        self.read_into(buf, self.at)
        return buf


class PeekIsAView(MemoryTensor):
    def peek(self, n):
        return self.items[:, :n]


class PeeksAhead(MemoryTensor):
    """Claims to be seekable, peeks like a stream."""

    at = 0

    def read_into(self, buf, start):
        self.at = start + buf.shape[1]
        return super().read_into(buf, start)

    def peek(self, n):
        return self.items[:, self.at : self.at + n].copy()


class Hoards(MemoryTensor):
    def read_into(self, buf, start):
        self.copy = self.items.copy()
        return super().read_into(buf, start)


class TakesAnything(MemoryTensor):
    def read_into(self, buf, start):
        return min(buf.shape[-2], 3)


class ClosesOnce(MemoryTensor):
    def close(self):
        del self.items


SOURCE_FAULTS = {
    "facts_agree": [WrongFacts],
    "blocks_of_any_size_give_the_rows": [OneRowTwice],
    "any_start_may_be_read_if_seekable": [OnlyForward],
    "peeking_does_not_consume": [PeekConsumes, PeekIsAView],
    "peeking_works_under_way": [PeeksAhead],
    "held_bytes_are_honest": [Hoards],
    "wrong_buffers_are_refused": [TakesAnything],
    "closing_twice_is_fine": [ClosesOnce],
}


@pytest.mark.parametrize("law", source.SOURCE_LAWS, ids=lambda law: law.__name__)
def test_source_laws(law):
    unharmed(source.SOURCE_LAWS, SOURCE_FAULTS)
    for kind in SOURCE_FAULTS[law.__name__]:
        with pytest.raises((AssertionError, AttributeError) if kind is ClosesOnce else AssertionError):
            law(source.SourceCase(lambda kind=kind: kind(ITEMS[0].copy()), ITEMS))


# --- sinks


class Plain:
    """A right sink, as small as possible: bytes in a hidden file that is renamed."""

    def __init__(self, folder):
        self.final, self.hidden = folder / "out.bin", folder / ".out.tmp"
        self.hidden.write_bytes(b"")
        self.rows_written = 0

    def write(self, start, block):
        if start != self.rows_written or block.shape[1:] != (2, 3):
            raise ValueError
        self.put(self.hidden, np.ascontiguousarray(block, "f4").tobytes())
        self.rows_written += len(block)

    def put(self, path, data):
        with open(path, "ab") as file:
            file.write(data)

    def commit(self, meta):
        self.hidden.replace(self.final)

    def abort(self):
        self.hidden.unlink(missing_ok=True)


class LosesRows(Plain):
    def commit(self, meta):
        self.hidden.write_bytes(self.hidden.read_bytes()[:-4] + b"\0\0\0\0")
        super().commit(meta)


class WritesTheCut(Plain):
    def write(self, start, block):
        super().write(start, block)
        self.put(self.hidden, bytes([len(block)]))


class MemoryOrder(Plain):
    def write(self, start, block):
        super().write(start, np.asarray(block, "f4").ravel("K").reshape(block.shape))


class AnyOrder(Plain):
    def write(self, start, block):
        self.put(self.hidden, np.ascontiguousarray(block, "f4").tobytes())
        self.rows_written += len(block)


class Visible(Plain):
    def __init__(self, folder):
        super().__init__(folder)
        self.hidden = self.hidden.rename(folder / "unfinished")


class LeavesTraces(Plain):
    def abort(self):
        pass


class KeepsTheOld(Plain):
    def commit(self, meta):
        if not self.final.exists():
            super().commit(meta)


SINK_FAULTS = {
    "what_is_written_is_read": LosesRows,
    "any_cut_gives_the_same_bytes": WritesTheCut,
    "blocks_need_not_be_contiguous": MemoryOrder,
    "rows_come_in_order_and_shape": AnyOrder,
    "the_name_appears_only_at_commit": Visible,
    "aborting_leaves_nothing": LeavesTraces,
    "a_commit_replaces_the_old_output": KeepsTheOld,
}


def read_plain(folder):
    return np.fromfile(folder / "out.bin", "f4").reshape(-1, 2, 3)


@pytest.mark.parametrize("law", sink.SINK_LAWS, ids=lambda law: law.__name__)
def test_sink_laws(tmp_path, law):
    unharmed(sink.SINK_LAWS, SINK_FAULTS)
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    law(sink.SinkCase(Plain, read_plain), tmp_path / "right")
    bites(law, sink.SinkCase(SINK_FAULTS[law.__name__], read_plain), tmp_path / "wrong")
