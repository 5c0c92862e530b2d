"""The test of an environment: the contract, and the answers that a model really writes."""

from forkgym.envs.checking import check_tool_env
from forkgym.tools.checking import check_tool
from tests.examples.forkgym_example.letters import LettersEnv, count_letter


def test_count_letter() -> None:
    check_tool(count_letter, calls=[{"word": "banana", "letter": "a"}, {"word": "", "letter": ""}])
    assert count_letter("banana", "a") == "3"


def test_the_contract() -> None:
    for grammar in ("arpo", "search_r1", "hermes"):
        check_tool_env(LettersEnv(grammar=grammar))


def test_scores() -> None:
    env = LettersEnv()
    task = env.task(0)
    for answer, score in ((task.answer, 1.0), (rf"It is \boxed{{{task.answer}}}.", 1.0), ("nan", 0.0), ("", 0.0)):
        assert env.score(answer, task) == {"correct": score}
