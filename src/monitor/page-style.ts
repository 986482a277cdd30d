import { darkPalette, palette } from './chart.js'

/** Colours of curves on a light and on a dark background: two more than figures use, so that eight runs can be compared. */
export const lightColours = [...palette, '#3a2a8c', '#8b1a1a']
export const darkColours = [...darkPalette, '#a890ff', '#ff6666']

const colours = (list: readonly string[]) => list.map((colour, i) => `--line${i}: ${colour};`).join(' ')

/** The report's style sheet: light or dark by the reader's setting, one column on a narrow screen. */
export const pageStyle = `
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --soft: #59636e; --faint: #d8dee4; --accent: #0550ae;
  --good: #1a7f37; --bad: #b42318; --warn: #8a5a00;
  ${colours(lightColours)}
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --panel: #161b22; --ink: #e6edf3; --soft: #9aa5b1; --faint: #30363d; --accent: #79b8ff;
    --good: #4ac26b; --bad: #ff8080; --warn: #e3b341;
    ${colours(darkColours)}
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 100rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 1rem 0 0.25rem; }
h2 { font-size: 1.2rem; margin: 1.75rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0 0 0.25rem; }
a { color: var(--accent); }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; margin: 0; }
.skip:not(:focus) { position: absolute; left: -100vw; }
#runs { overflow-wrap: anywhere; }
#runs .scroll { max-height: none; }
#runs table { font-size: 0.9rem; }
#runs th, #runs td { text-align: start; vertical-align: top; padding-right: 1.25rem; }
#runs tbody th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.constant { color: var(--soft); font-size: 0.85rem; overflow-wrap: anywhere; }
.constant b { font-weight: 600; }
.notes td, .notes th { text-align: start; vertical-align: top; }
.notes th, .notes td:not(.note) { white-space: nowrap; }
.note { overflow-wrap: anywhere; min-width: 12rem; }
.note.warning { color: var(--warn); }
#status { min-height: 1.5em; margin: 0; color: var(--soft); }
header { padding-bottom: 0.5rem; }
#status.lost { color: var(--bad); font-weight: 600; }
.bar { position: sticky; top: 0; z-index: 10; background: var(--paper); border-bottom: 1px solid var(--faint); }
.bar > div { max-width: 100rem; margin: 0 auto; padding: 0.35rem 1rem; display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; align-items: center; }
.bar ul { display: flex; gap: 1rem; list-style: none; margin: 0; padding: 0.25rem 0; overflow-x: auto; white-space: nowrap; }
.bar nav { min-width: 0; max-width: 100%; }
label { display: inline-flex; align-items: center; gap: 0.5rem; }
input[type='range'] { accent-color: var(--accent); width: min(16rem, 45vw); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.chart { margin: 0; padding: 0.75rem; min-width: 0; background: var(--panel); border: 1px solid var(--faint); border-radius: 8px; }
.chart:only-child { max-width: 50rem; }
.plot { height: 220px; overflow: hidden; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0 0.25rem; padding: 0.2rem; margin: 0.25rem 0;
  max-height: 220px; overflow: auto; /* many runs: no taller than the plot */
}
.legend button {
  font: inherit; font-size: 0.85rem; color: var(--ink); background: none; border: 1px solid transparent; border-radius: 4px;
  padding: 0.1rem 0.35rem; cursor: pointer; overflow-wrap: anywhere; text-align: start;
}
.legend button:hover { border-color: var(--faint); }
.legend button[aria-pressed='false'] { color: var(--soft); text-decoration: line-through; }
.swatch { vertical-align: middle; margin-inline-end: 0.4rem; }
[hidden] { display: none; }
.value { font-variant-numeric: tabular-nums; font-weight: 600; }
.details { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; font-size: 0.85rem; color: var(--soft); }
.details > details[open] { flex-basis: 100%; min-width: 0; }
.details p { margin: 0.25rem 0; }
summary { cursor: pointer; }
.scroll { overflow: auto; max-height: 24rem; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; color: var(--ink); }
caption { text-align: start; color: var(--soft); padding: 0.25rem 0; }
th, td { padding: 0.15rem 0.75rem 0.15rem 0; text-align: end; border-bottom: 1px solid var(--faint); }
th[scope='row'], thead th:first-child { text-align: start; font-weight: 500; }
thead th { position: sticky; top: 0; background: var(--paper); }
.chart thead th { background: var(--panel); }
pre { font: 0.85rem/1.45 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.group { border: 1px solid var(--faint); border-radius: 8px; padding: 0.75rem; margin: 0.75rem 0; background: var(--panel); }
.group pre { max-height: 16rem; overflow: auto; }
.prompt { font-weight: 600; }
.answer { margin: 0.25rem 0; color: var(--soft); overflow-wrap: anywhere; }
.completion-list { list-style: none; padding: 0; margin: 0.5rem 0 0; display: grid; gap: 0.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.completion { background: var(--paper); border: 1px solid var(--faint); border-inline-start: 4px solid var(--faint); border-radius: 4px; padding: 0.5rem; min-width: 0; }
.completion.positive { border-inline-start-color: var(--good); }
.completion.negative { border-inline-start-color: var(--bad); }
.completion.positive .reward b { color: var(--good); }
.completion.negative .reward b { color: var(--bad); }
.reward { margin: 0 0 0.25rem; font-size: 0.85rem; }
footer { color: var(--soft); font-size: 0.85rem; padding-bottom: 2rem; }
@media print { .bar, .details { display: none; } .legend { max-height: none; } }
`
