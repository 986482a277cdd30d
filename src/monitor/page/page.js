// The report's page, as it runs in the browser: charts by uPlot, tables, completions. Everything from a run is set as text, never as HTML.

/** @typedef {import('../report-data.js').ReportData} ReportData */
/** @typedef {import('../report-data.js').ReportChart} ReportChart */
/** @typedef {import('../report-data.js').Curve} Curve */
/** @typedef {import('../report-data.js').CompletionGroup} CompletionGroup */
/** @typedef {{ label: string, colour: number, dash: number[], curve: Curve }} Line */

/** @type {typeof import('uplot')} */
const Plot = /** @type {any} */ (globalThis).uPlot
const plotHeight = 220
const dashes = [[], [8, 4], [2, 3], [12, 3, 2, 3], [5, 5], [1, 5]]
const pollMilliseconds = 1000

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
function byId(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id))
}

/**
 * An element with attributes and children; strings become text.
 *
 * @param {string} name
 * @param {Record<string, string | boolean>} attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
function element(name, attributes, ...children) {
  const made = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) if (value !== false) made.setAttribute(key, value === true ? '' : value)
  made.append(...children)
  return made
}

/**
 * Four significant digits; large numbers whole.
 *
 * @param {number | null | undefined} value
 */
function format(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–'
  const size = Math.abs(value)
  if (Number.isInteger(value) || size >= 1e4) return Math.round(value).toLocaleString('en-US')
  return size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)))
}

/**
 * A moving average that forgets by `smoothing` per point, without a bias towards its start.
 *
 * @param {readonly number[]} values
 * @param {number} smoothing
 */
function smooth(values, smoothing) {
  if (smoothing === 0) return values
  let sum = 0
  let weight = 0
  return values.map((value) => {
    sum = sum * smoothing + value
    weight = weight * smoothing + 1
    return sum / weight
  })
}

/** @param {string} name */
function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim()
}

/**
 * Lines on one axis of steps; null where a line has no value.
 *
 * @param {readonly Line[]} lines
 * @param {number} smoothing
 * @returns {{ steps: number[], values: (number | null)[][] }}
 */
function align(lines, smoothing) {
  const steps = [...new Set(lines.flatMap(({ curve }) => curve.steps))].sort((a, b) => a - b)
  const place = new Map(steps.map((step, i) => [step, i]))
  const values = lines.map(({ curve }) => {
    /** @type {(number | null)[]} */
    const row = Array(steps.length).fill(null)
    const drawn = smooth(curve.values, smoothing)
    for (const [i, step] of curve.steps.entries()) row[/** @type {number} */ (place.get(step))] = drawn[i] ?? null
    return row
  })
  return { steps, values }
}

/** A chart with its legend, its text alternative and its table. */
class Chart {
  /** @param {ReportChart} chart */
  constructor(chart) {
    this.title = chart.unit === '' ? chart.title : `${chart.title} (${chart.unit})`
    /** @type {Line[]} */
    this.lines = []
    /** @type {Set<string>} */
    this.hidden = new Set()
    this.smoothing = 0
    this.cursor = -1
    /** @type {import('uplot') | undefined} */
    this.plot = undefined
    const id = `chart-${chart.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')}`
    this.holder = element('div', {
      class: 'plot',
      tabindex: '0',
      role: 'slider',
      'aria-label': `${this.title}, values by step`,
      'aria-describedby': `${id}-summary`,
      'aria-valuemin': '0',
      'aria-valuemax': '0',
      'aria-valuenow': '0',
    })
    this.legend = element('ul', { class: 'legend', 'aria-label': `Curves of ${chart.title}` })
    this.summary = element('p', { class: 'hidden', id: `${id}-summary` })
    this.table = /** @type {HTMLDetailsElement} */ (element('details', {}, element('summary', {}, 'Values as a table')))
    const descriptions = chart.lines.map(({ label, description }) => element('p', {}, element('b', {}, label), ` ${description}`))
    const about = element('details', {}, element('summary', {}, 'What it shows'), ...descriptions)
    this.node = element(
      'figure',
      { class: 'chart', 'aria-labelledby': id },
      element('figcaption', {}, element('h3', { id }, this.title)),
      this.holder,
      this.legend,
      this.summary,
      element('div', { class: 'details' }, about, this.table),
    )
    this.holder.addEventListener('keydown', (event) => this.#key(event))
    this.table.addEventListener('toggle', () => this.#fillTable())
    new ResizeObserver(() => this.plot?.setSize({ width: this.holder.clientWidth, height: plotHeight })).observe(this.holder)
  }

  /**
   * Shows other values. Zoom, hidden curves and focus stay.
   *
   * @param {Line[]} lines
   * @param {number} smoothing
   */
  show(lines, smoothing) {
    const same = lines.length === this.lines.length && lines.every((line, i) => line.label === this.lines[i]?.label)
    this.lines = lines
    this.smoothing = smoothing
    this.data = align(lines, smoothing)
    const { steps } = this.data
    this.holder.setAttribute('aria-valuemin', String(steps[0] ?? 0))
    this.holder.setAttribute('aria-valuemax', String(steps.at(-1) ?? 0))
    if (same && this.plot !== undefined) {
      const { min, max } = this.plot.scales.x ?? {}
      const zoomed = min != null && max != null && (min > this.drawnFrom || max < this.drawnTo)
      this.plot.setData(this.#columns(), !zoomed)
      if (zoomed) this.plot.redraw()
    } else this.draw()
    this.drawnFrom = steps[0] ?? 0
    this.drawnTo = steps.at(-1) ?? 0
    if (!same) this.#buildLegend()
    this.#readOut()
    this.summary.textContent = `${lines.map((line) => this.#lineSummary(line)).join(' ')} Arrow keys read the values, plus and minus zoom, Escape shows all.`
    this.#fillTable()
  }

  drawnFrom = 0
  drawnTo = 0
  /** @type {{ steps: number[], values: (number | null)[][] }} */
  data = { steps: [], values: [] }

  /** Draws from the beginning: other curves, or other colours. */
  draw() {
    this.plot?.destroy()
    const ink = cssColour('--ink')
    const axis = {
      stroke: ink,
      grid: { stroke: cssColour('--faint'), width: 1 },
      ticks: { stroke: cssColour('--faint'), width: 1 },
      font: '12px system-ui, sans-serif',
    }
    const few = this.data.steps.length < 40
    this.plot = new Plot(
      {
        width: Math.max(this.holder.clientWidth, 100),
        height: plotHeight,
        scales: { x: { time: false } },
        axes: [
          { ...axis, space: 60 },
          { ...axis, size: 62, values: (_, ticks) => ticks.map(format) },
        ],
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: false } },
        series: [
          {},
          ...this.lines.map((line) => ({
            label: line.label,
            stroke: cssColour(`--line${line.colour}`),
            width: 2,
            dash: line.dash,
            spanGaps: true,
            show: !this.hidden.has(line.label),
            points: { show: few, size: 6, fill: cssColour(`--line${line.colour}`) },
          })),
        ],
        hooks: {
          setCursor: [
            (plot) => {
              this.cursor = plot.cursor.idx ?? -1
              this.#readOut()
            },
          ],
        },
      },
      this.#columns(),
      this.holder,
    )
    for (const canvas of this.holder.querySelectorAll('canvas')) canvas.setAttribute('aria-hidden', 'true')
  }

  /** @returns {import('uplot').AlignedData} */
  #columns() {
    return /** @type {any} */ ([this.data.steps, ...this.data.values])
  }

  /** @param {Line} line */
  #lineSummary({ label, curve }) {
    const first = curve.values[0]
    return `${label}: ${format(first)} at step ${curve.steps[0]}, ${format(curve.last)} at step ${curve.steps.at(-1)}, between ${format(curve.min)} and ${format(curve.max)}.`
  }

  #buildLegend() {
    this.legend.replaceChildren(
      ...this.lines.map((line, i) => {
        const swatch = element('span', { class: 'swatch', 'aria-hidden': 'true' })
        swatch.style.borderTopColor = `var(--line${line.colour})`
        swatch.style.borderTopStyle = line.dash.length === 0 ? 'solid' : line.dash[0] === 2 ? 'dotted' : 'dashed'
        const button = element('button', { type: 'button' }, swatch, `${line.label} `, element('span', { class: 'value' }))
        button.setAttribute('aria-pressed', String(!this.hidden.has(line.label)))
        button.addEventListener('click', () => {
          const show = this.hidden.delete(line.label)
          if (!show) this.hidden.add(line.label)
          button.setAttribute('aria-pressed', String(show))
          this.plot?.setSeries(i + 1, { show })
        })
        return element('li', {}, button)
      }),
    )
  }

  /** Values at the cursor, or the last ones, in the legend and for screen readers. */
  #readOut() {
    const { steps, values } = this.data
    const at = this.cursor >= 0 && this.cursor < steps.length ? this.cursor : undefined
    const shown = this.lines.map(({ curve }, i) => (at === undefined ? curve.last : values[i]?.[at]))
    for (const [i, node] of this.legend.querySelectorAll('.value').entries()) node.textContent = format(shown[i])
    const step = steps[at ?? steps.length - 1] ?? 0
    this.holder.setAttribute('aria-valuenow', String(step))
    const said = this.lines.map(({ label }, i) => (this.hidden.has(label) ? '' : `, ${label} ${format(shown[i])}`))
    this.holder.setAttribute('aria-valuetext', `step ${step}${said.join('')}`)
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { plot } = this
    const { steps } = this.data
    if (plot === undefined || steps.length === 0 || event.ctrlKey || event.metaKey || event.altKey) return
    const last = steps.length - 1
    const from = this.cursor < 0 ? last : this.cursor
    /** @type {Record<string, number>} */
    const places = {
      ArrowLeft: from - 1,
      ArrowDown: from - 1,
      ArrowRight: from + 1,
      ArrowUp: from + 1,
      PageDown: from - Math.ceil(steps.length / 10),
      PageUp: from + Math.ceil(steps.length / 10),
      Home: 0,
      End: last,
    }
    const place = places[event.key]
    if (place !== undefined) {
      const to = Math.min(Math.max(place, 0), last)
      plot.setCursor({ left: plot.valToPos(/** @type {number} */ (steps[to]), 'x'), top: 0 })
      this.cursor = to // the pixel that was asked for may lie nearer to a neighbour
      this.#readOut()
    } else if (event.key === '+' || event.key === '-') {
      const { min, max } = plot.scales.x ?? {}
      if (min == null || max == null) return
      const centre = this.cursor < 0 ? (min + max) / 2 : /** @type {number} */ (steps[this.cursor])
      const half = ((max - min) / 2) * (event.key === '+' ? 0.5 : 2)
      const low = Math.max(centre - half, /** @type {number} */ (steps[0]))
      const high = Math.min(centre + half, /** @type {number} */ (steps[last]))
      if (high > low) plot.setScale('x', { min: low, max: high })
    } else if (event.key === 'Escape') {
      plot.setData(this.#columns(), true)
    } else return
    event.preventDefault()
  }

  #fillTable() {
    const heading = /** @type {HTMLElement} */ (this.table.firstElementChild)
    if (!this.table.open) return
    const { steps, values } = align(this.lines, 0)
    const most = 50
    const rows = Array.from({ length: Math.min(most, steps.length) }, (_, i) =>
      steps.length <= most ? i : Math.round((i * (steps.length - 1)) / (most - 1)),
    )
    const head = ['step', ...this.lines.map(({ label }) => label)].map((label) => element('th', { scope: 'col' }, label))
    const body = rows.map((row) =>
      element(
        'tr',
        {},
        element('th', { scope: 'row' }, String(steps[row])),
        ...values.map((column) => element('td', {}, format(column[row]))),
      ),
    )
    const caption = element('caption', {}, `${this.title}${steps.length > most ? `, ${most} of ${steps.length} points` : ''}`)
    const table = element('table', {}, caption, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))
    this.table.replaceChildren(heading, scrollable(table, `Values of ${this.title}`))
  }
}

/**
 * A box that scrolls instead of the page, also with the keyboard.
 *
 * @param {HTMLElement} content
 * @param {string} label
 */
function scrollable(content, label) {
  return element('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': label }, content)
}

class Page {
  /** @param {ReportData} data */
  constructor(data) {
    this.data = data
    /** @type {Map<string, Chart>} */
    this.charts = new Map()
    this.shape = ''
    this.followsCompletions = true
    this.completionStep = 0
    const smoothing = /** @type {HTMLInputElement} */ (byId('smoothing'))
    smoothing.addEventListener('input', () => this.showCharts())
    const chosen = /** @type {HTMLInputElement} */ (byId('completion-step'))
    chosen.addEventListener('input', () => {
      const steps = this.completionSteps()
      this.followsCompletions = Number(chosen.value) === steps.length - 1
      this.completionStep = steps[Number(chosen.value)] ?? 0
      this.showCompletions()
    })
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      for (const chart of this.charts.values()) chart.draw()
    })
    this.show(data)
  }

  /** @param {ReportData} data */
  show(data) {
    this.data = data
    this.showHead()
    const shape = JSON.stringify(data.sections)
    if (shape !== this.shape) this.build()
    this.shape = shape
    this.showCharts()
    this.showCompletions()
    this.showSummary()
    this.showConfig()
  }

  showHead() {
    const { runs } = this.data
    const list = runs.map((run, i) => {
      const swatch = element('span', { class: 'swatch', 'aria-hidden': 'true', hidden: runs.length === 1 })
      swatch.style.borderTopColor = `var(--line${i % this.data.colours})`
      const steps = run.steps === null ? `step ${run.step}` : `step ${run.step} of ${run.steps}`
      return element(
        'li',
        {},
        swatch,
        element('b', {}, run.name),
        ` ${[run.trainer, steps].filter((part) => part !== null).join(', ')}`,
      )
    })
    byId('runs').replaceChildren(...list)
  }

  /** The sections and their charts, when there are other ones than before. */
  build() {
    const { sections } = this.data
    /** @type {Map<string, Chart>} */
    const charts = new Map()
    const nodes = sections.map(({ title, charts: specs }, i) => {
      const made = specs.map((spec) => {
        const key = JSON.stringify(spec)
        const chart = this.charts.get(key) ?? new Chart(spec)
        charts.set(key, chart)
        return chart.node
      })
      const id = `section-${i}`
      return element(
        'section',
        { id, 'aria-labelledby': `${id}-title` },
        element('h2', { id: `${id}-title` }, title),
        element('div', { class: 'charts' }, ...made),
      )
    })
    for (const [key, chart] of this.charts) if (!charts.has(key)) chart.plot?.destroy()
    this.charts = charts
    byId('charts').replaceChildren(...nodes)
    const fixed = [...document.querySelectorAll('main > section')].map((section) => [
      section.id,
      section.querySelector('h2')?.textContent ?? '',
    ])
    const links = [...sections.map(({ title }, i) => [`section-${i}`, title]), ...fixed]
    byId('sections').replaceChildren(
      ...links.map(([id, title]) => element('li', {}, element('a', { href: `#${id}` }, title ?? ''))),
    )
    byId('empty').hidden = sections.length > 0
  }

  showCharts() {
    const smoothing = Number(/** @type {HTMLInputElement} */ (byId('smoothing')).value)
    byId('smoothing-value').textContent = smoothing === 0 ? 'off' : String(smoothing)
    for (const section of this.data.sections)
      for (const spec of section.charts) this.charts.get(JSON.stringify(spec))?.show(this.lines(spec), smoothing)
    const longest = this.data.runs.reduce((most, { stepsPerPoint }) => Math.max(most, stepsPerPoint), 1)
    byId('averaged').textContent =
      longest === 1 ? '' : `A point is the mean of up to ${longest} steps; extremes are those of all steps.`
  }

  /**
   * The curves of a chart. Runs have colours and metrics dashes where a few metrics of several runs are compared, else the other
   * way round.
   *
   * @param {ReportChart} spec
   * @returns {Line[]}
   */
  lines(spec) {
    const { runs, colours } = this.data
    return spec.lines.flatMap(({ metric, label }, m) =>
      runs.flatMap((run, r) => {
        const curve = run.curves[metric]
        if (curve === undefined) return []
        const byRun = runs.length > 1 && spec.lines.length <= 3
        return {
          label: runs.length === 1 ? label : spec.lines.length === 1 ? run.name : `${label}, ${run.name}`,
          colour: (byRun ? r : m) % colours,
          dash: dashes[(byRun ? m : r) % dashes.length] ?? [],
          curve,
        }
      }),
    )
  }

  completionSteps() {
    return [...new Set(this.data.runs.flatMap(({ completions }) => completions.map(({ step }) => step)))].sort((a, b) => a - b)
  }

  showCompletions() {
    const steps = this.completionSteps()
    byId('completions').hidden = steps.length === 0
    if (steps.length === 0) return
    if (this.followsCompletions || !steps.includes(this.completionStep)) this.completionStep = steps.at(-1) ?? 0
    const chosen = /** @type {HTMLInputElement} */ (byId('completion-step'))
    chosen.max = String(steps.length - 1)
    chosen.value = String(steps.indexOf(this.completionStep))
    chosen.setAttribute('aria-valuetext', `step ${this.completionStep}`)
    byId('completion-step-value').textContent = `step ${this.completionStep}`
    const { runs } = this.data
    const nodes = runs.flatMap((run) => {
      // runs that wrote at other steps show their latest until then
      const shown = run.completions.findLast(({ step }) => step <= this.completionStep)
      const groups = (shown?.groups ?? []).map((group) => this.group(group))
      if (runs.length === 1) return groups
      const when = shown === undefined ? ', none yet' : `, step ${shown.step}`
      return [element('h3', {}, `${run.name}${when}`), ...groups]
    })
    byId('completion-groups').replaceChildren(...nodes)
  }

  /** @param {CompletionGroup} group */
  group({ prompt, answer, completions }) {
    const cards = completions.map(({ text, reward, rewards }, i) => {
      const parts = Object.entries(rewards)
      const each = parts.length > 1 ? ` (${parts.map(([name, value]) => `${name} ${format(value)}`).join(', ')})` : ''
      const sign = reward === null || reward === 0 ? 'zero' : reward > 0 ? 'positive' : 'negative'
      const label = `Completion ${i + 1}`
      return element(
        'li',
        { class: `completion ${sign}` },
        element('p', { class: 'reward' }, element('b', {}, `reward ${format(reward)}`), each),
        element('pre', { dir: 'auto', tabindex: '0', role: 'group', 'aria-label': label }, text === '' ? '(empty)' : text),
      )
    })
    const expected =
      answer === null ? [] : [element('p', { class: 'answer' }, 'answer ', element('code', { dir: 'auto' }, answer))]
    return element(
      'article',
      { class: 'group' },
      element('pre', { class: 'prompt', dir: 'auto', tabindex: '0', role: 'group', 'aria-label': 'Prompt' }, prompt),
      ...expected,
      element('ul', { class: 'completion-list' }, ...cards),
    )
  }

  showSummary() {
    const { runs } = this.data
    const names = [...new Set(runs.flatMap(({ curves }) => Object.keys(curves)))]
    const columns = runs.length === 1 ? ['last', 'lowest', 'highest'] : runs.map(({ name }) => name)
    const head = ['metric', ...columns].map((name) => element('th', { scope: 'col' }, name))
    const rows = names.map((name) => {
      const curves = runs.map((run) => run.curves[name])
      const values = runs.length === 1 ? [curves[0]?.last, curves[0]?.min, curves[0]?.max] : curves.map((curve) => curve?.last)
      return element('tr', {}, element('th', { scope: 'row' }, name), ...values.map((value) => element('td', {}, format(value))))
    })
    const caption = element(
      'caption',
      {},
      runs.length === 1 ? 'Every metric of metrics.jsonl' : 'Every metric, the last value of each run',
    )
    const table = element('table', {}, caption, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows))
    const box = byId('summary-table')
    const scrolled = box.firstElementChild?.scrollTop ?? 0
    const focused = box.contains(document.activeElement)
    const made = scrollable(table, 'All metrics')
    box.replaceChildren(made)
    made.scrollTop = scrolled
    if (focused) made.focus({ preventScroll: true })
  }

  showConfig() {
    const { runs } = this.data
    const text = JSON.stringify(runs.map(({ config }) => config))
    if (text === this.config) return
    this.config = text
    const box = byId('config-text')
    const [first] = runs
    if (runs.length === 1 && first !== undefined) {
      box.replaceChildren(scrollable(element('pre', {}, first.config), 'config.yaml'))
      return
    }
    const names = [...new Set(runs.flatMap(({ options }) => Object.keys(options)))]
    const different = names.filter((name) => new Set(runs.map(({ options }) => options[name])).size > 1)
    const head = ['option', ...runs.map(({ name }) => name)].map((name) => element('th', { scope: 'col' }, name))
    const rows = different.map((name) =>
      element(
        'tr',
        {},
        element('th', { scope: 'row' }, name),
        ...runs.map(({ options }) => element('td', {}, options[name] ?? '–')),
      ),
    )
    const caption = element('caption', {}, `Options that differ: ${different.length} of ${names.length}`)
    const table = element('table', {}, caption, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows))
    box.replaceChildren(scrollable(table, 'Options that differ'))
  }

  /** @type {string | undefined} */
  config = undefined

  /** Asks the server again and again; the page stays as it is while nothing changes. */
  async follow() {
    const status = byId('status')
    let etag = ''
    while (true) {
      try {
        const answer = await fetch('data.json', { headers: etag === '' ? {} : { 'If-None-Match': etag }, cache: 'no-store' })
        if (answer.status === 200) {
          etag = answer.headers.get('ETag') ?? ''
          this.show(await answer.json())
        } else if (answer.status !== 304) throw new Error(await answer.text())
        status.textContent = 'Live: follows the run.'
        status.classList.remove('lost')
      } catch {
        status.textContent = 'looplm watch does not answer; what is shown is the last that came.'
        status.classList.add('lost')
      }
      await new Promise((resolve) => setTimeout(resolve, pollMilliseconds))
    }
  }
}

const data = /** @type {ReportData} */ (JSON.parse(byId('data').textContent ?? ''))
const page = new Page(data)
if (data.live) void page.follow()
