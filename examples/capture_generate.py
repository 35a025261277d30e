"""A sender that works first and hands on afterwards: what it computed while it generated becomes the message.

    python examples/capture_generate.py

Offline, on the embedded pair, which knows incident dossiers and nothing else: what its sender writes behind a dossier
is more sentences of that kind, some of them made up. The point is that the message costs no second pass.
"""

import ilcp
from ilcp.tasks import case_files

NEW_TOKENS = 12


def main() -> None:
    pair = ilcp.load_pair()
    case = next(case_files(split="test", seed=7, n=1))
    inputs = pair.sender.tokenizer(case.context, return_tensors="pt")

    with pair.sender.capture() as context:  # any call of the model counts: generate, forward, one or several
        outputs = pair.sender.model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )
    read, written = inputs.input_ids.shape[1], pair.sender.tokenizer.decode(outputs[0, inputs.input_ids.shape[1] :])
    print(f"the sender read {read} tokens and wrote: {written.strip()}")

    message = pair.sender.encode(context)  # the states are there already: the model is not run again
    print(f"its states of {context.rows[0].tokens} tokens became {len(message)} bytes")

    memory = pair.receiver.decode(message)
    for question in case.questions[:6]:
        answer = pair.receiver.generate(memory, question.text)
        print(f"{question.text} {answer} (the dossier says: {question.answer})")


if __name__ == "__main__":
    main()
