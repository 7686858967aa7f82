"""A small server with OpenAI's interface that errs on purpose: python openai_stub.py <log>.

The label of a page is its first word; the answer comes in one of the shapes that models use. Faults come by the page:
"429", "500", "hang", "chatter" in its text make the first answer to it such a fault; "refuse" is always answered 400,
"babble" never with a topic, "gateway" with an error under status 200 six times.
"""

import json
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

from tests.openai_server import Handler, serve

SHAPES = ('{{"topic": "{}"}}', "{}", 'Sure! {{"topic": "{}"}} is right.', '```json\n{{"topic": "{}"}}\n```')


class Stub(Handler):
    seen: ClassVar[Counter[tuple[str, str]]] = Counter()
    lock = threading.Lock()
    stop = threading.Event()
    log = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("/dev/null")

    def do_POST(self) -> None:
        body = self.asked()
        asked = body["messages"][1]["content"]
        text = re.split("The page:\n|网页内容：\n", asked)[1]
        with self.lock:
            self.seen[(body["model"], text)] += 1
            number = self.seen[(body["model"], text)]
            with self.log.open("a") as stream:
                row = {"path": self.path, "key": self.headers.get("Authorization"), "text": text, "body": body}
                stream.write(json.dumps(row) + "\n")
        if "gateway" in text and number < 7:
            self.reply({"error": {"message": "Provider returned error", "code": 429}})
        elif "refuse" in text:
            self.reply({"error": {"message": "response_format is unknown here"}}, 400)
        elif number == 1 and "429" in text:
            self.reply({}, 429, {"Retry-After": "0"})
        elif number == 1 and "500" in text:
            self.reply({}, 500)
        elif number == 1 and "hang" in text:
            self.stop.wait(60)  # the client's patience is shorter
        elif (number == 1 and "chatter" in text) or "babble" in text:
            self.say("I think this could be many things.")
        else:
            label = text.split()[0]
            if body["model"] == "contrary" and "contested" in text:
                label = "others"
            self.say(SHAPES[len(text) % len(SHAPES)].format(label))


if __name__ == "__main__":
    serve(Stub)
