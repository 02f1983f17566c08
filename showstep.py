import sys

from steps import steps_of

n, a, b = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
for s in steps_of(n, 1):
    if s[1] > a and s[0] < b:
        pr = [(k, t, c) for k, t, dd, c in s[3] if not dd]
        if pr:
            print(
                f"{s[0]:.4f} {s[1]:.4f} {1e3 * (s[1] - s[0]):.1f}ms dec {sum(1 for r in s[3] if r[2])} prompts {pr} "
            )
