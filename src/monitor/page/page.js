// The report's page, as it runs in the browser: charts by uPlot, tables, completions. Everything from a run is set as text, never as HTML.

/** @typedef {import('../report-data.js').ReportData} ReportData */
/** @typedef {import('../report-data.js').ReportChart} ReportChart */
/** @typedef {import('../report-data.js').Curve} Curve */
/** @typedef {import('../report-data.js').CompletionGroup} CompletionGroup */
/** @typedef {import('../report-data.js').RunData} RunData */
/**
 * A curve of a chart. `short` is its label in the legend, where a long name of a run would take the chart's room.
 * @typedef {{ label: string, short: string, colour: number, dash: number[], width: number, curve: Curve }} Line
 */

/** @type {typeof import('uplot')} */
const Plot = /** @type {any} */ (globalThis).uPlot
const plotHeight = 220
const plotFont = '12px system-ui, sans-serif'
const dashes = [[], [9, 4], [2, 3], [12, 3, 2, 3], [20, 4], [9, 3, 2, 3, 2, 3], [2, 8], [12, 3, 4, 3]]
/** @type {[size: number, letter: string][]} */
const units = [
  [1e12, 'T'],
  [1e9, 'B'],
  [1e6, 'M'],
]
const wholeSteps = Array.from({ length: 16 }, (_, i) => [1, 2, 5].map((factor) => factor * 10 ** i)).flat()
const longestName = 18 // characters of a run's name in a legend
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
 * A stroke as it is drawn in the charts.
 *
 * @param {{ colour: number, dash: number[], width: number }} line
 */
function swatch({ colour, dash, width }) {
  const space = 'http://www.w3.org/2000/svg'
  const made = document.createElementNS(space, 'svg')
  for (const [key, value] of Object.entries({ class: 'swatch', width: '28', height: '6', 'aria-hidden': 'true' }))
    made.setAttribute(key, value)
  const stroke = document.createElementNS(space, 'line')
  const attributes = { x1: '0', x2: '28', y1: '3', y2: '3', 'stroke-width': String(width), 'stroke-dasharray': dash.join(' ') }
  for (const [key, value] of Object.entries(attributes)) stroke.setAttribute(key, value)
  stroke.style.stroke = `var(--line${colour})`
  made.append(stroke)
  return made
}

/**
 * A run's colour; once the colours are used up, they begin again with broader lines.
 *
 * @param {number} run
 * @param {number} colours
 */
function runStyle(run, colours) {
  return { colour: run % colours, width: 2 + 2 * Math.floor(run / colours) }
}

/** @param {number} place */
function dashAt(place) {
  return dashes[place % dashes.length] ?? []
}

/**
 * Names that fit into a legend: the middle of long ones is left out, where runs of one series are alike.
 *
 * @param {readonly string[]} names
 */
function shortNames(names) {
  const half = (longestName - 1) / 2
  const short = names.map((name) => {
    const letters = [...name]
    if (letters.length <= longestName) return name
    return `${letters.slice(0, Math.floor(half)).join('')}…${letters.slice(-Math.ceil(half)).join('')}`
  })
  return short.map((name, i) => (short.filter((other) => other === name).length > 1 ? `${name} [${i + 1}]` : name))
}

/**
 * Four significant digits; whole numbers below a million as they are, larger ones with a letter, very large and small ones with an exponent.
 *
 * @param {number | null | undefined} value
 */
function format(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–'
  const size = Math.abs(value)
  if (size >= 1e15 || (size > 0 && size < 1e-3)) {
    const [digits, exponent] = value.toExponential(2).split('e')
    return `${Number(digits)}e${Number(exponent)}`
  }
  const rounded = Number(value.toPrecision(4)) // first: 999,999,900 is 1B, not 1000M
  const [unit, letter] = size < 999_999.5 ? [1, ''] : (units.find(([unit]) => Math.abs(rounded) >= unit) ?? [1, ''])
  if (unit > 1) return `${Number((rounded / unit).toPrecision(4))}${letter}`
  return Number.isInteger(value) || size >= 1e4 ? (Math.round(value) || 0).toLocaleString('en-US') : String(rounded)
}

/**
 * Digits behind the point that a multiple of this number needs.
 *
 * @param {number} increment
 */
function decimals(increment) {
  for (let digits = 0; digits < 12; digits++) {
    const scaled = increment * 10 ** digits
    if (scaled > 0.5 && Math.abs(scaled - Math.round(scaled)) < 1e-6 * scaled) return digits
  }
  return 12
}

/**
 * Labels that tell the ticks of an axis apart.
 *
 * @param {readonly number[]} ticks
 * @param {number} increment between two of them
 * @param {number} exponent the power of ten that they are to be multiplied by
 */
function axisLabels(ticks, increment, exponent) {
  const largest = ticks.reduce((most, tick) => Math.max(most, Math.abs(tick)), 0)
  const compact = units.find(([unit]) => largest >= unit && decimals(increment / unit) <= 3)
  const [unit, letter] = exponent === 0 ? (compact ?? [1, '']) : [1, `e${exponent}`]
  const digits = decimals(increment / unit)
  return ticks.map((tick) => {
    const shown = Number((tick / unit).toFixed(digits))
    return shown === 0 ? '0' : `${shown.toLocaleString('en-US', { maximumFractionDigits: digits })}${letter}`
  })
}

/**
 * The power of ten by which curves are divided before they are drawn: outside of the range where numbers read well, and where their
 * differences neither overflow nor vanish; 0 otherwise.
 *
 * @param {readonly Line[]} lines
 */
function exponentOf(lines) {
  const largest = lines.reduce((most, { curve }) => curve.values.reduce((max, value) => Math.max(max, Math.abs(value)), most), 0)
  return largest >= 1e15 || (largest > 1e-300 && largest < 1e-3) ? Math.floor(Math.log10(largest)) : 0
}

/**
 * The width of a label in a chart, in pixels.
 *
 * @param {import('uplot')} plot
 * @param {string} label
 */
function labelWidth(plot, label) {
  plot.ctx.font = plotFont
  return plot.ctx.measureText(label).width
}

/**
 * What a run measured; a metric may be called as something that every object has.
 *
 * @template Value
 * @param {Record<string, Value>} values
 * @param {string} name
 * @returns {Value | undefined}
 */
function own(values, name) {
  return Object.hasOwn(values, name) ? values[name] : undefined
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
    this.share = chart.unit === 'share'
    this.exponent = 0
    this.lastLabel = ''
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
    this.exponent = this.share ? 0 : exponentOf(lines)
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
      ticks: { stroke: cssColour('--faint'), width: 1, size: 5 },
      font: plotFont,
      gap: 4,
    }
    const few = this.data.steps.length < 40
    this.plot = new Plot(
      {
        width: Math.max(this.holder.clientWidth, 100),
        height: plotHeight,
        // on the right, room for the half of the last label of the steps that may lie beyond the axis
        padding: [8, (plot) => Math.max(8, Math.ceil(labelWidth(plot, this.lastLabel) / 2)), null, null],
        scales: {
          x: { time: false },
          y: { range: (_, low, high) => this.#range(low, high) },
        },
        axes: [
          {
            ...axis,
            space: 70,
            size: 22,
            incrs: wholeSteps,
            values: (_, ticks, _axis, _space, increment) => {
              const labels = axisLabels(ticks, increment, 0)
              this.lastLabel = labels.at(-1) ?? ''
              return labels
            },
            label: 'step',
            labelFont: plotFont,
            labelSize: 16,
            labelGap: 0,
          },
          {
            ...axis,
            values: (_, ticks, _axis, _space, increment) => axisLabels(ticks, increment, this.exponent),
            size: (plot, labels) => {
              const widest = (labels ?? []).reduce((most, label) => Math.max(most, labelWidth(plot, label)), 0)
              return Math.max(36, Math.ceil(widest) + 10)
            },
          },
        ],
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: false } },
        series: [
          {},
          ...this.lines.map((line) => ({
            label: line.label,
            stroke: cssColour(`--line${line.colour}`),
            width: line.width,
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
    const factor = Number(`1e${this.exponent}`) // exact, which 10 ** n is not everywhere
    const scaled = (/** @type {(number | null)[]} */ row) => row.map((value) => (value === null ? null : value / factor))
    return /** @type {any} */ ([this.data.steps, ...this.data.values.map((row) => (factor === 1 ? row : scaled(row)))])
  }

  /**
   * The range of the y axis. A flat curve gets a narrow one around it, and a share the whole of its range.
   *
   * @param {number | null} low
   * @param {number | null} high
   * @returns {import('uplot').Range.MinMax}
   */
  #range(low, high) {
    if (low === null || high === null) return [0, 1]
    const size = Math.max(Math.abs(low), Math.abs(high))
    if (size > 1e-300 && high - low > 1e-9 * size) return Plot.rangeNum(low, high, 0.1, true)
    if (size <= 1e-300 || (this.share && low >= 0 && high <= 1)) return [0, 1]
    return [low - size / 10, high + size / 10]
  }

  /** @param {Line} line */
  #lineSummary({ label, curve }) {
    const first = curve.values[0]
    return `${label}: ${format(first)} at step ${curve.steps[0]}, ${format(curve.last)} at step ${curve.steps.at(-1)}, between ${format(curve.min)} and ${format(curve.max)}.`
  }

  #buildLegend() {
    this.legend.replaceChildren(
      ...this.lines.map((line, i) => {
        const shortened = line.short !== line.label
        const value = element('span', { class: 'value' })
        const button = element(
          'button',
          { type: 'button', title: shortened && line.label },
          swatch(line),
          `${line.short} `,
          value,
        )
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
      element('tr', {}, element('th', { scope: 'row' }, String(steps[row])), ...values.map((column) => cell(column[row]))),
    )
    const caption = element('caption', {}, `${this.title}${steps.length > most ? `, ${most} of ${steps.length} points` : ''}`)
    const table = element('table', {}, caption, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))
    this.table.replaceChildren(heading, scrollable(table, `Values of ${this.title}`))
  }
}

/**
 * A value in a table; one that is abbreviated says itself in full when it is pointed at.
 *
 * @param {number | null | undefined} value
 */
function cell(value) {
  const text = format(value)
  return element('td', { title: /[a-zA-Z]/.test(text) && String(value) }, text)
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
    this.links = ''
    /** @type {string[]} names of the runs in legends */
    this.names = []
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
    this.names = shortNames(data.runs.map(({ name }) => name))
    this.showHead()
    const shape = JSON.stringify(data.sections)
    if (shape !== this.shape) this.build()
    this.shape = shape
    this.showCharts()
    this.showCompletions()
    this.showSummary()
    this.showConfig()
    this.showLinks()
  }

  showHead() {
    const { runs } = this.data
    const list = runs.map((run, i) => {
      const steps = run.steps === null ? `step ${run.step}` : `step ${run.step} of ${run.steps}`
      const about = run.trainer === null || run.trainer === run.name ? steps : `${run.trainer}, ${steps}`
      const stroke = runs.length === 1 ? [] : [swatch({ ...runStyle(i, this.data.colours), dash: [] })]
      return element('li', {}, ...stroke, element('b', {}, run.name), ` ${about}`)
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
    byId('empty').hidden = sections.length > 0
  }

  /** Links to what the page shows at present. */
  showLinks() {
    const fixed = [...document.querySelectorAll('main > section:not([hidden])')].map((section) => [
      section.id,
      section.querySelector('h2')?.textContent ?? '',
    ])
    const links = [...this.data.sections.map(({ title }, i) => [`section-${i}`, title]), ...fixed]
    const text = JSON.stringify(links)
    if (text === this.links) return // a link that has the focus keeps it
    this.links = text
    byId('sections').replaceChildren(
      ...links.map(([id, title]) => element('li', {}, element('a', { href: `#${id}` }, title ?? ''))),
    )
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
   * The curves of a chart. Where runs are compared, a colour is a run, as in the page's head, and a dash is a metric; of one run, a
   * colour is a metric.
   *
   * @param {ReportChart} spec
   * @returns {Line[]}
   */
  lines(spec) {
    const { runs, colours } = this.data
    return spec.lines.flatMap(({ metric, label }, m) =>
      runs.flatMap((run, r) => {
        const curve = own(run.curves, metric)
        if (curve === undefined) return []
        if (runs.length === 1)
          return { label, short: label, colour: m % colours, dash: dashAt(Math.floor(m / colours)), width: 2, curve }
        const withRun = (/** @type {string} */ name) => (spec.lines.length === 1 ? name : `${label}, ${name}`)
        return {
          label: withRun(run.name),
          short: withRun(this.names[r] ?? ''),
          ...runStyle(r, colours),
          dash: dashAt(m),
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
      const when = shown === undefined ? this.withoutCompletions(run) : `, step ${shown.step}`
      return [element('h3', {}, `${run.name}${when}`), ...groups]
    })
    byId('completion-groups').replaceChildren(...nodes)
  }

  /**
   * Why a run has no completions at the step that is shown.
   *
   * @param {RunData} run
   */
  withoutCompletions({ completions: [first], step, steps }) {
    if (first !== undefined) return `, the first at step ${first.step}`
    return this.data.live && (steps === null || step < steps) ? ', none yet' : ', none'
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
    const columns = ['last', 'lowest', 'highest'].map((name) => element('th', { scope: 'col' }, name))
    const head = [element('th', { scope: 'col' }, 'metric'), ...(runs.length === 1 ? columns : this.runHeadings())]
    const rows = names.map((name) => {
      const curves = runs.map((run) => own(run.curves, name))
      const values = runs.length === 1 ? [curves[0]?.last, curves[0]?.min, curves[0]?.max] : curves.map((curve) => curve?.last)
      return element('tr', {}, element('th', { scope: 'row' }, name), ...values.map(cell))
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

  /** The heads of a table's columns, one for each run. */
  runHeadings() {
    return this.data.runs.map(({ name }, r) => {
      const short = this.names[r] ?? ''
      return element('th', { scope: 'col', title: short !== name && name }, short)
    })
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
    const different = names.filter((name) => new Set(runs.map(({ options }) => own(options, name))).size > 1)
    const head = [element('th', { scope: 'col' }, 'option'), ...this.runHeadings()]
    const rows = different.map((name) =>
      element(
        'tr',
        {},
        element('th', { scope: 'row' }, name),
        ...runs.map(({ options }) => element('td', {}, own(options, name) ?? '–')),
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
