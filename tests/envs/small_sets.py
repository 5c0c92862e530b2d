"""Rows of the search sets and of a file for verl, in their real layouts, small enough to read."""

from __future__ import annotations

from typing import Any

# As on the hub (framolfese/2WikiMultihopQA): HotpotQA's columns, sentences without spaces around them.
TWO_WIKI_ROWS: list[dict[str, Any]] = [
    {
        "id": "8813f87c0bdd11eba7f7acde48001122",
        "type": "compositional",
        "question": "Who is the mother of the director of film Salt Lanterns?",
        "answer": "Oda Wren",
        "context": {
            "title": ["Salt Lanterns", "Piet Wren", "Oda Wren"],
            "sentences": [
                ["Salt Lanterns is a 1961 film.", "It was directed by Piet Wren."],
                ["Piet Wren was a director.", "His mother was Oda Wren."],
                ["Oda Wren was a painter."],
            ],
        },
        "supporting_facts": {"title": ["Salt Lanterns", "Piet Wren"], "sent_id": [1, 1]},
        "evidences": [["Salt Lanterns", "director", "Piet Wren"], ["Piet Wren", "mother", "Oda Wren"]],
    },
    {
        "id": "19a1",
        "type": "comparison",
        "question": "Which film came out first, Salt Lanterns or Blue Ferry?",
        "answer": "Blue Ferry",
        "context": {
            "title": ["Blue Ferry", "Salt Lanterns"],
            "sentences": [
                ["Blue Ferry is a 1958 film."],
                ["Salt Lanterns is a 1961 film.", "It was directed by Piet Wren."],
            ],
        },
        "supporting_facts": {"title": ["Salt Lanterns", "Blue Ferry"], "sent_id": [0, 0]},
        "evidences": [["Salt Lanterns", "publication date", "1961"], ["Blue Ferry", "publication date", "1958"]],
    },
]


def paragraph(idx: int, title: str, text: str, *, supports: bool = False) -> dict[str, Any]:
    """A paragraph of MuSiQue."""
    return {"idx": idx, "title": title, "paragraph_text": text, "is_supporting": supports}


# As on the hub (dgslibisey/MuSiQue). The hops are in another order than the paragraphs.
MUSIQUE_ROWS: list[dict[str, Any]] = [
    {
        "id": "2hop__460946_294723",
        "paragraphs": [
            paragraph(0, "Lena Okoro", "Lena Okoro is married to the potter Tom Vale.", supports=True),
            paragraph(1, "Grey Heron", "Grey Heron is a river boat."),
            paragraph(2, "Amber Days", "Amber Days is an album by Lena Okoro.", supports=True),
        ],
        "question": "Who is the spouse of the Amber Days performer?",
        "question_decomposition": [
            {"id": 460946, "question": "Amber Days >> performer", "answer": "Lena Okoro", "paragraph_support_idx": 2},
            {"id": 294723, "question": "#1 >> spouse", "answer": "Tom Vale", "paragraph_support_idx": 0},
        ],
        "answer": "Tom Vale",
        "answer_aliases": ["Thomas Vale", "T. Vale"],
        "answerable": True,
    },
    {
        "id": "2hop__1_2",
        "paragraphs": [paragraph(0, "Grey Heron", "Grey Heron is a river boat.")],
        "question": "Who built the boat of the Amber Days performer?",
        "question_decomposition": [
            {"id": 1, "question": "Amber Days >> performer", "answer": "Lena Okoro", "paragraph_support_idx": None},
            {"id": 2, "question": "who built #1's boat", "answer": "Ada Roe", "paragraph_support_idx": None},
        ],
        "answer": "Ada Roe",
        "answer_aliases": [],
        "answerable": False,
    },
]

# As on the hub (chiayewken/bamboogle): capital letters, no paragraphs.
BAMBOOGLE_ROWS: list[dict[str, Any]] = [
    {"Question": "Who was president of Ferrol in the year that Blue Ferry came out?", "Answer": "Ivo Marsh"},
    {"Question": "What is the capital of the country where Lena Okoro was born?", "Answer": "Port Ash"},
]

# As on the hub (callanwu/WebWalkerQA).
WEBWALKERQA_ROWS: list[dict[str, Any]] = [
    {
        "question": "When is the deadline for papers, and where is the conference?",
        "answer": "The deadline is March 21, and the conference is in Vienna.",
        "root_url": "https://conference.example/",
        "info": {
            "hop": "multi-source",
            "domain": "conference",
            "lang": "en",
            "difficulty_level": "medium",
            "source_website": ["https://conference.example/calls/", "https://conference.example/venue/"],
            "golden_path": ["root->calls", "root->venue"],
        },
    },
    {
        "question": "论文的截止日期是什么时候？",
        "answer": "截止日期是2025年3月21日。",
        "root_url": "https://conference.example/zh/",
        "info": {
            "hop": "single-source",
            "domain": "conference",
            "lang": "zh",
            "difficulty_level": "easy",
            "source_website": ["https://conference.example/zh/calls/"],
            "golden_path": ["root->calls"],
        },
    },
]


def verl_row(index: int, ability: str, question: str, truth: Any) -> dict[str, Any]:
    """A row as ARPO's training set has them."""
    return {
        "data_source": "DR_grpo_mix",
        "prompt": [
            {"role": "system", "content": "Think within <think> </think>, search within <search> </search>."},
            {"role": "user", "content": question},
        ],
        "ability": ability,
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": index, "need_tools_kwargs": True, "question": question, "split": "train"},
        "metadata": None,
    }


VERL_ROWS: list[dict[str, Any]] = [
    verl_row(0, "math", "What is half of $\\sqrt{12}$?", "\\sqrt{3}"),
    verl_row(1, "qa", "Who directed Salt Lanterns?", "Piet Wren<|answer_split|>P. Wren"),
    verl_row(2, "math", "What do three pens at \\$14.33 cost, in dollars?", "\\$42.99"),
    verl_row(3, "math", "A question whose answer was lost.", ""),
    verl_row(4, "qa", "What kind of boat is Grey Heron?", "river boat"),
]

CORPUS_ROWS: list[dict[str, Any]] = [
    {"id": "0", "contents": '"Salt Lanterns"\nSalt Lanterns is a 1961 film. It was directed by Piet Wren.'},
    {"id": "1", "contents": '"Grey Heron"\nGrey Heron is a river boat.'},
    {"id": "2", "contents": '"Ivo Marsh"\nIvo Marsh was president of Ferrol from 1955 to 1960.'},
]
