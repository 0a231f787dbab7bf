"""``dashvlm VERB ...`` runs a verb, as ``python -m dashvlm.VERB ...`` does; without one it lists them."""

import difflib
import runpy
import sys

VERBS = {
    "train": "fit one configuration, or a sweep with -m, and print its table",
    "evaluate": "score a finished run on other data, or a backbone without training",
    "score": "the same numbers for predictions that another tool wrote, from their file and the truth",
    "predict": "answers of a finished run for new videos, pictures and questions; risk over time",
    "label": "rationales, annotations or preference pairs from a teacher or from a run of ours",
    "inspect": "dataset card and contact sheet (data=...), or a model's parts (model=...)",
    "report": "the table of the runs in a folder or a W&B project; of a study; of runs against each other",
    "export": "PEFT adapter, merged model and model card of a finished run",
}


def main() -> None:
    """Run the verb that the command line names, or print all of them."""
    if sys.argv[1:] and sys.argv[1] in VERBS:
        verb = sys.argv.pop(1)
        runpy.run_module(f"dashvlm.{verb}", run_name="__main__", alter_sys=True)
        return
    if sys.argv[1:] and sys.argv[1] not in ("-h", "--help"):
        known = difflib.get_close_matches(sys.argv[1], VERBS, 1)
        meant = f"; did you mean {known[0]}?" if known else f"; the verbs are {', '.join(VERBS)}"
        sys.exit(f"dashvlm: there is no verb {sys.argv[1]!r}{meant}")
    print("dashvlm VERB [key=value ...]   (--help shows a verb's configuration)\n")
    for verb, what in VERBS.items():
        print(f"  {verb:9s} {what}")
    print("\nfirst command:  dashvlm train model=smolvlm2 task=crash "
          "model.checkpoint=tiny data=synthetic -m data.num_frames=5,10,15")  # fmt: skip


if __name__ == "__main__":
    main()
