import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { replaceFile } from '../files/write.js'
import { checkPaths } from '../validation/arguments.js'
import { type MetricDoc, matchMetric, metricGroups } from './metric-catalogue.js'
import { lightColours, pageStyle } from './page-style.js'
import type { ReportChart, ReportData } from './report-data.js'
import { RunReader } from './run-reader.js'

/** Reads runs and arranges the charts of their metrics. */
export async function reportData(readers: readonly RunReader[], live = false): Promise<ReportData> {
  const runs = await Promise.all(readers.map((reader) => reader.read()))
  for (const name of new Set(runs.map((run) => run.name))) {
    // two folders may have the same name: runs/a/final and runs/b/final
    const same = runs.filter((run) => run.name === name)
    if (same.length > 1) for (const [i, run] of same.entries()) run.name = `${name} (${i + 1})`
  }
  const names = [...new Set(runs.flatMap(({ curves }) => Object.keys(curves)))]
  return { runs, sections: layOut(names), colours: lightColours.length, live }
}

/**
 * Writes a report of one run, or one that compares several, as a single HTML file that needs no network.
 *
 * @param runs run folders
 * @param path the file; replaced atomically when it is complete
 * @throws LoopLMError NOT_FOUND for a run folder that does not exist, INVALID_FILE if the report cannot be written,
 *   INVALID_ARGUMENT for runs that are no array of names
 *
 * @example
 * ```ts
 * await writeReport(['runs/rltt', 'runs/grpo'], 'comparison.html')
 * ```
 */
export async function writeReport(runs: readonly string[], path: string): Promise<void> {
  checkPaths(runs, 'runs', 'run folder', 'writeReport')
  const html = reportPage(await reportData(runs.map((run) => new RunReader(run))))
  await replaceFile(path, html, 'report')
}

/** The charts that have data. Metrics outside of the catalogue come last, one chart each. */
function layOut(names: readonly string[]): ReportData['sections'] {
  const left = new Set(names)
  const linesOf = (doc: MetricDoc): ReportChart['lines'] => {
    const found = names.flatMap((metric) => {
      const match = left.has(metric) ? matchMetric(doc.name, metric) : undefined
      if (match === undefined) return []
      left.delete(metric)
      return [{ metric, label: labelOf(doc.name, metric, match), description: doc.description, loop: match.loop ?? 0 }]
    })
    found.sort((a, b) => a.loop - b.loop)
    return found.map(({ loop, ...line }) => line)
  }
  const sections = metricGroups.map(({ title, charts }) => ({
    title,
    charts: charts
      .map(({ title, metrics }) => ({ title, unit: metrics[0]?.unit ?? '', lines: metrics.flatMap(linesOf) }))
      .filter(({ lines }) => lines.length > 0),
  }))
  const others = [...left].map((metric) => ({ title: metric, unit: '', lines: [{ metric, label: metric, description: '' }] }))
  return [...sections, { title: 'Others', charts: others }].filter(({ charts }) => charts.length > 0)
}

/** A curve's name in a legend. It is short if the chart's title says the rest. */
function labelOf(documented: string, metric: string, { loop, name }: { loop?: number; name?: string }): string {
  if (loop === undefined) return metric
  if (documented.startsWith('loop_')) return `loop ${loop}` // a metric of one loop, not of a run with this number of loops
  const [, what, k] = /_(low|high|at_(\d+))$/.exec(metric) ?? []
  const end = k === undefined ? { low: 'from', high: 'to' }[what ?? ''] : `pass@${k}`
  return [name, loop === 1 ? '1 loop' : `${loop} loops`, end].filter((part) => part !== undefined).join(', ')
}

const uplot = join(dirname(createRequire(import.meta.url).resolve('uplot/package.json')), 'dist')
const source = (path: string | URL) => readFileSync(path, 'utf8').trim()
const hash = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`
const escapeHtml = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')

let parts: { library: string; program: string; style: string } | undefined

/** The page's own code, read for the first page. */
function pageParts() {
  parts ??= {
    library: source(join(uplot, 'uPlot.iife.min.js')),
    program: source(new URL('./page/page.js', import.meta.url)),
    style: `${source(join(uplot, 'uPlot.min.css'))}\n${pageStyle}`,
  }
  return parts
}

/**
 * The content security policy of a page: it only runs and shows what belongs to it, whatever a completion contains. The hashes
 * are those of the page's own code.
 */
export function contentSecurityPolicy(live: boolean): string {
  const { library, program, style } = pageParts()
  const rules = [
    "default-src 'none'",
    'img-src data:', // the empty icon, so that browsers do not request one
    `script-src ${hash(library)} ${hash(program)}`,
    `style-src ${hash(style)}`,
    `connect-src ${live ? "'self'" : "'none'"}`,
    "base-uri 'none'",
    "form-action 'none'",
  ]
  return rules.join('; ')
}

/** The HTML of a page. */
export function reportPage(data: ReportData): string {
  const { library, program, style } = pageParts()
  const title = data.runs.map(({ name }) => name).join(', ')
  const heading = data.runs.length === 1 ? title : `Comparison of ${data.runs.length} runs`
  // escapes "<", so that no text of a run can end the script element
  const json = JSON.stringify(data).replaceAll('<', '\\u003c')
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${contentSecurityPolicy(data.live)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(title)} – looplm</title>
<link rel="icon" href="data:,">
<style>${style}</style>
</head>
<body>
<a class="skip" href="#charts">Skip to the charts</a>
<header>
<h1>${escapeHtml(heading)}</h1>
<div id="runs"></div>
${data.live ? '<p id="status" role="status"></p>\n' : ''}<noscript><p>The charts are drawn by a script of this page, which is switched off. The numbers are in metrics.jsonl.</p></noscript>
</header>
<section class="bar" aria-label="View"><div>
<nav aria-label="Sections"><ul id="sections"></ul></nav>
<label>Smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02" value="0"> <output id="smoothing-value" for="smoothing">off</output></label>
</div></section>
<main>
<p id="empty">No metrics yet.</p>
<div id="charts" tabindex="-1"></div>
<p id="averaged"></p>
<section id="completions" aria-labelledby="completions-title">
<h2 id="completions-title">Sample completions</h2>
<label>Step <input id="completion-step" type="range" min="0" max="0" step="1" value="0"> <output id="completion-step-value" for="completion-step"></output></label>
<div id="completion-groups"></div>
</section>
<section id="notes" aria-labelledby="notes-title">
<h2 id="notes-title">Resumes and warnings</h2>
<div id="notes-table"></div>
</section>
<section id="summary" aria-labelledby="summary-title">
<h2 id="summary-title">All metrics</h2>
<div id="summary-table"></div>
</section>
<section id="config" aria-labelledby="config-title">
<h2 id="config-title">Configuration</h2>
<div id="config-text"></div>
</section>
</main>
<footer><p>Made by looplm. Drag over a chart to zoom, double-click to show all; with the keyboard, arrow keys read values, + and - zoom, Escape shows all.</p></footer>
<script type="application/json" id="data">${json}</script>
<script>${library}</script>
<script type="module">${program}</script>
</body>
</html>
`
}
