"""Three agents over one model: each reads its part behind what the others computed, and the last one answers.

    python examples/trace_pipeline.py

Beside it the same pipeline in text. The reader is not tuned here: ``ilcp trace train`` does that, and measures it.
"""

import ilcp
from ilcp import trace
from ilcp.tasks import case_files

SAID = 40  # tokens of each agent's summary; a model that was never tuned to sum up does it badly


def main() -> None:
    end = ilcp.load_pair().receiver
    model, tokenizer = end.model, end.tokenizer
    case = next(case_files("test", seed=7, n=1))
    parts = trace.cut(case.context, 3)

    roles = ("planner", "critic", "coder")
    agents = [trace.Writer(model, tokenizer, role=role, steps=5, prompt=" {text}") for role in roles]
    codec = trace.TraceCodec.of(model, tokenizer, trace.Plan(roles, steps=5, prompt=" {text}"))
    reader = trace.Reader(model, tokenizer, codec, allow_unmeasured=True)
    written = trace.written(agents, parts)

    said = ""
    for agent, part in zip(agents, parts, strict=True):
        said = agent.say(part, on=said, tokens=SAID)

    for segment in written.segments:
        print(f"{segment.role}: {segment.prompt_tokens} tokens read, {segment.steps} steps")
    right: dict[str, int] = {"trace": 0, f"what was said, {SAID} tokens each": 0, "the text": 0}
    for question in case.questions:
        answers = {
            "trace": reader.generate(written, question.text),
            f"what was said, {SAID} tokens each": reader.generate(None, question.text, context=said),
            "the text": reader.generate(None, question.text, context=case.context),
        }
        for name, answer in answers.items():
            right[name] += answer == question.answer
    for name, count in right.items():
        print(f"from {name}: {count} of {len(case.questions)} right")


if __name__ == "__main__":
    main()
