"""What is due after which step."""

from trainer_loop.options import Due, LoopOptions


def test_intervals_count_steps_and_the_last_step_has_all():
    options = LoopOptions(num_steps=10, log_every=3, checkpoint_every=4, evaluate_every=5)
    due = {step: options.due(step) for step in range(1, 11)}
    assert [step for step in due if due[step].log] == [3, 5, 6, 9, 10], "an evaluation has a training row beside it"
    assert [step for step in due if due[step].save] == [4, 8, 10]
    assert [step for step in due if due[step].evaluate] == [5, 10]


def test_what_never_happens_is_not_due_at_the_end_either():
    assert LoopOptions(num_steps=7, log_every=3).due(7) == Due(log=True, save=False, evaluate=False)
