"""Rows of MATH, MATH-500 and AIME in the hub's layouts: the project's own problems, small enough to read."""

from __future__ import annotations

from typing import Any

# DigitalLearningGmbH/MATH-lighteval and EleutherAI/hendrycks_math: the answer stands in the solution.
MATH_ROWS: list[dict[str, Any]] = [
    {
        "problem": r"Simplify $\sqrt{50} - 3\sqrt{2}$.",
        "level": "Level 2",
        "type": "Algebra",
        "solution": r"$\sqrt{50} = 5\sqrt{2}$, so the difference is $\boxed{2\sqrt{2}}$.",
    },
    {
        "problem": "Prove that two is even.",
        "level": "Level 1",
        "type": "Number Theory",
        "solution": "It is twice one.",  # without an answer
    },
    {
        "problem": "What share of the whole numbers from 1 to 4 is prime?",
        "level": "Level 1",
        "type": "Counting & Probability",
        "solution": r"Of four, 2 and 3 are prime: $\boxed{\frac{1}{2}}$.",
    },
]

# HuggingFaceH4/MATH-500.
MATH500_ROWS: list[dict[str, Any]] = [
    {
        "problem": r"For which $x$ is $x^2 < 9$? Answer with an interval.",
        "solution": r"Where $-3 < x < 3$: $\boxed{(-3,3)}$.",
        "answer": "(-3,3)",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/algebra/1.json",
    },
    {
        "problem": "Ada is older than Ben, and Ben is older than Cleo. Who is the oldest?",
        "solution": r"$\boxed{\text{Ada}}$",
        "answer": r"\text{Ada}",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/2.json",
    },
    {
        "problem": "Which problem is this?",
        "solution": "",
        "answer": "see solution",  # nothing to hold an answer against
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/3.json",
    },
]

# Maxwell-Jia/AIME_2024 writes its columns with capital letters, math-ai/aime25 does not.
AIME_ROWS: list[dict[str, Any]] = [
    {
        "ID": "2024-I-0",
        "Problem": "Find the number of whole numbers from 1 to 50 that 2 divides.",
        "Solution": "Every other one: 25.",
        "Answer": 25,
    },
    {"problem": "Find the remainder of $10^{3}$ after division by 991.", "answer": "009", "id": "0"},
]
