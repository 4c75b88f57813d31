"""What became of the cheats in scripts/gpu/cheats, from the events of `jitune tune --json`: none won, each was seen, and the
other problem of the run has its winner. Prints a line a cheat; exit code 1 when one of it is not so."""
import json
import sys

# The verdicts that are right for each; of some it depends on the machine when they are seen.
SEEN = {
    10: "wrong", 11: "wrong", 12: "unstable", 13: "unstable", 14: "unstable", 15: "unstable", 16: "unstable",
    17: "unstable", 18: "unstable", 19: "wrong", 20: "unstable", 21: "wrong", 22: "wrong", 23: "unstable",
    24: "wrong", 25: "wrong", 26: "timeout", 27: "fault", 28: "fault", 29: "fault", 30: "wrong", 31: "measured",
    32: "wrong", 33: "unstable", 34: "unstable measured", 35: "unstable",
    36: "unstable",
}
events = [json.loads(line) for line in open(sys.argv[1])]
mine = [e for e in events if str(e.get("problem", "")).startswith("gelu")]
number = lambda e: int(e["config"].rsplit("which=", 1)[1])
verdicts = {number(e): e["verdict"] for e in mine if e["event"] == "trial"}
later = {number(e): e["verdict"] for e in mine if e["event"] == "unstable"}
bad = 0
for which, allowed in SEEN.items():
    verdict = later.get(which, verdicts.get(which, {"verdict": "not tried"}))
    ok = verdict["verdict"] in allowed.split()
    bad += not ok
    why = verdict.get("why") or verdict.get("message") or ""
    print(f"{'ok    ' if ok else 'FAILED'} which={which}: {verdict['verdict']} {why[:90]}")
for which in (0, 1, 2):
    if verdicts.get(which, {}).get("verdict") != "measured":
        bad += 1
        print(f"FAILED which={which} is honest: {verdicts.get(which)}")
won = {e["index"]: e["winner"] for e in events if e["event"] == "won"}
if len(won) != 2 or won[0]["config"] != "which=0":
    bad += 1
    print("FAILED winners:", {i: w["config"] for i, w in won.items()})
print(f"{len(SEEN)} cheats, {bad} findings")
sys.exit(bad > 0)
