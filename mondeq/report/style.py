"""How the page looks: one column, the fonts of the system, colours for light and for dark."""

# Colours of curves that differ in lightness too (Okabe & Ito), for those who tell few colours apart.
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1c1e21; --faint: #60666d; --line: #dcdfe2; --card: #f1f3f4;
  --c0: #0063a6; --c1: #7a7f85; --c2: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171a; --ink: #e6e8ea; --faint: #9aa1a8; --line: #33383d;
  --card: #1f2327; --c0: #62b6f7; --c1: #9aa1a8; --c2: #ff9d57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.15rem; }
p { color: var(--faint); max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .75rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--faint); font-size: .85rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
th { color: var(--faint); font-weight: 600; }
.number { text-align: right; white-space: nowrap; padding-left: .5rem; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font-size: 13px; }
.charts svg text { font-size: 16px; }
.grid { stroke: var(--line); stroke-width: 1; }
path { fill: none; stroke-width: 2; stroke: currentColor; }
path.dashes { stroke-dasharray: 5 4; stroke-width: 1.5; }
circle { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.chart { max-width: 46rem; margin-bottom: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem 1.5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: .25rem 0 0;
  padding: 0 0 0 3rem;
  font-size: .85rem; color: var(--faint); }
.key { display: inline-block; width: 1.3rem; margin-right: .45rem; vertical-align: middle; border-top: 2px solid; }
.key.dashes { border-top-style: dashed; }
.key.dots { width: .5rem; height: .5rem; border: 0; border-radius: 50%; background: currentColor; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem; }
.pictures figure { background: var(--card); border-radius: .5rem; padding: .75rem; }
.pictures img { width: 5rem; height: auto; margin-right: .4rem; image-rendering: pixelated; }
figcaption { font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
details { margin: .5rem 0; }
summary { cursor: pointer; }
pre { overflow: auto; max-height: 30rem; padding: .75rem; background: var(--card); border-radius: .5rem;
  font-size: .8rem; }
@media print { body { max-width: none; } section { break-inside: avoid; } }
"""
"""The style sheet."""
