"""The page's style sheet: system fonts, one column, dark or light as the reader's system is. Nothing is loaded."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #57606a; --line: #d8dee4; --page: #ffffff; --card: #f6f8fa;
  --accent: #0b62a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --quiet: #9aa4af; --line: #343b44; --page: #14171b;
  --card: #1d2127; --accent: #6cb4f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: 0 0 .75rem; max-width: 46rem; }
.quiet, figcaption, caption, .unit { color: var(--quiet); }
.headline { margin: 1.5rem 0 0; padding: 1rem 1.25rem; background: var(--card); border-left: 4px solid var(--accent);
  border-radius: 0 6px 6px 0; }
.headline p { margin: 0 0 .4rem; max-width: none; font-size: 1.05rem; }
.headline p:last-child { margin-bottom: 0; }
figure { margin: 0 0 1rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
figcaption { margin-top: .6rem; max-width: 46rem; font-size: .95rem; }
.scroll { overflow-x: auto; margin: 0 0 1.25rem; }
nav ul { columns: 18rem; margin: 1.25rem 0 0; padding: 0; list-style: none; font-size: .9rem; }
nav .h3 { padding-left: 1rem; }
a { color: var(--accent); }
figcaption small a { margin-right: .35rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption span { display: block; max-width: 46rem; }
thead td { border-bottom: 0; }
caption { text-align: left; padding: 0 0 .5rem; caption-side: top; }
th, td { padding: .4rem .75rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
tbody th { font-weight: 500; min-width: 10rem; }
tr > :first-child { position: sticky; left: 0; background: var(--page); }
thead th { vertical-align: bottom; }
th[scope="colgroup"] { border-bottom: 0; }
td { white-space: nowrap; }
td.wrap { white-space: normal; min-width: 12rem; color: var(--quiet); }
td small, th small { font-weight: 400; color: var(--quiet); display: block; }
td.good { color: var(--accent); font-weight: 600; }
tr.reference th, tr.reference td { color: var(--quiet); }
details { margin: 0 0 .75rem; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 1rem; overflow-x: auto;
  font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 3rem; font-size: .9rem; color: var(--quiet); }
@media (max-width: 34rem) { main { padding: 1.25rem .75rem 3rem; } h1 { font-size: 1.4rem; } table { font-size: .8rem; }
  tbody th { min-width: 6rem; max-width: 9rem; overflow-wrap: anywhere; } .headline { padding: .75rem; } }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""
