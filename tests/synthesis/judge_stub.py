"""A judge that errs at known rates: judge_stub.py <truth.json> <sensitivity> <specificity> <log>.

It answers 401 without the key `of the judge`, 400 to a question with TOO LONG, and nothing within less than 100 tokens.

truth.json: answer -> whether it is wrong. Which verdicts are false is decided by a hash of the answer. The first
request for an answer is sometimes met with 429, 500, a cut connection, or an answer that is no JSON.
"""

import hashlib
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

from tests.openai_server import Handler, serve


class Judge(Handler):
    truth: ClassVar[dict[str, bool]] = json.loads(Path(sys.argv[1]).read_text())
    rates: ClassVar[dict[bool, float]] = {True: float(sys.argv[2]), False: float(sys.argv[3])}
    seen: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.asked()
        if self.headers.get("Authorization") != "Bearer of the judge":
            self.reply({}, 401)
            return
        asked = body["messages"][1]["content"]
        answer = next(answer for answer in self.truth if answer in asked)
        draw = int.from_bytes(hashlib.sha256(answer.encode()).digest()[:4], "big")
        with self.lock:
            self.seen[answer] += 1
            is_first = self.seen[answer] == 1
            with Path(sys.argv[4]).open("a") as log:
                log.write(json.dumps(answer) + "\n")
        if "TOO LONG" in asked:
            self.reply({"error": "maximum context length is 64 tokens"}, 400)
        elif body["max_tokens"] < 100:  # it reasons first
            self.say("", finish_reason="length")
        elif is_first and draw % 20 < 3:
            self.reply({}, (429, 500, 503)[draw % 3], {"Retry-After": "0"})
        elif is_first and draw % 20 == 3:
            self.close_connection = True
        elif is_first and draw % 20 == 4:
            self.say("I think it is fine.")
        else:
            is_wrong = self.truth[answer]
            says_truth = (draw // 20) % 10_000 < 10_000 * self.rates[is_wrong]
            verdict = "wrong" if is_wrong == says_truth else "right"
            self.say(json.dumps({"reason": r"because \frac", "verdict": verdict}).replace(r"\\f", r"\f"))


if __name__ == "__main__":
    serve(Judge)
