// The report's page, as it runs in the browser: charts by uPlot, tables, completions. Everything from a run is set as text, never as HTML.

/** @typedef {import('../report-data.js').ReportData} ReportData */
/** @typedef {import('../report-data.js').ReportChart} ReportChart */
/** @typedef {import('../report-data.js').Curve} Curve */
/** @typedef {import('../report-data.js').CompletionGroup} CompletionGroup */
/** @typedef {import('../report-data.js').RunData} RunData */
/**
 * A curve of a chart. `short` is its label in the legend, where a long name of a run would take the chart's room; `run` is its run's place.
 * @typedef {{ metric: string, label: string, short: string, colour: number, dash: number[], width: number, curve: Curve, run: number }} Line
 */

/**
 * A step at which a run was resumed or warned, to be marked.
 * @typedef {{ step: number, type: 'resume' | 'warning', colour: number }} Mark
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
const fewPoints = 40 // a curve with fewer has dots and is not smoothed
const usualSmoothing = 0.8 // of runs with more steps
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
 * How much a curve is smoothed: evaluations are measured as they stand, and a few points need no help.
 *
 * @param {Line} line
 * @param {number} smoothing
 */
function smoothingOf({ curve, metric }, smoothing) {
  return metric.startsWith('eval/') || curve.steps.length < fewPoints ? 0 : smoothing
}

/**
 * Whether a curve never changes.
 *
 * @param {Curve} curve
 */
function isConstant({ steps, min, max }) {
  return steps.length > 1 && min === max
}

/**
 * A time for people, from seconds.
 *
 * @param {number | null} seconds
 */
function duration(seconds) {
  if (seconds === null) return '–'
  const total = Math.round(seconds)
  if (total < 60) return `${total} s`
  const minutes = Math.floor(total / 60)
  return minutes < 60 ? `${minutes} min ${total % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
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

/**
 * A colour that lets through what is behind it.
 *
 * @param {string} colour as #rrggbb
 * @param {number} share of it
 */
function translucent(colour, share) {
  return `${colour}${Math.round(255 * share)
    .toString(16)
    .padStart(2, '0')}`
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
  const values = lines.map((line) => {
    const { curve } = line
    /** @type {(number | null)[]} */
    const row = Array(steps.length).fill(null)
    const drawn = smooth(curve.values, smoothingOf(line, smoothing))
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
    new ResizeObserver(() => {
      if (this.plot === undefined || this.plot.width === this.holder.clientWidth) return
      this.draw() // other labels fit
    }).observe(this.holder)
  }

  /**
   * Shows other values. Zoom, hidden curves and focus stay.
   *
   * @param {Line[]} lines
   * @param {number} smoothing
   * @param {Mark[]} marks
   */
  show(lines, smoothing, marks) {
    this.marks = marks
    const was = this.lines.some((line) => this.#showsRaw(line))
    const same = lines.length === this.lines.length && lines.every((line, i) => line.label === this.lines[i]?.label)
    this.lines = lines
    this.smoothing = smoothing
    this.data = align(lines, smoothing)
    this.raw = align(lines, 0)
    this.exponent = this.share ? 0 : exponentOf(lines)
    const { steps } = this.data
    this.holder.setAttribute('aria-valuemin', String(steps[0] ?? 0))
    this.holder.setAttribute('aria-valuemax', String(steps.at(-1) ?? 0))
    const raw = lines.some((line) => this.#showsRaw(line))
    if (same && was === raw && this.plot !== undefined) {
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
  /** @type {{ steps: number[], values: (number | null)[][] }} */
  raw = { steps: [], values: [] }
  /** @type {Mark[]} */
  marks = []

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
    const few = this.data.steps.length < fewPoints
    const labels = this.#endLabels()
    this.plot = new Plot(
      {
        width: Math.max(this.holder.clientWidth, 100),
        height: plotHeight,
        // on the right, room for labels at the ends of lines, and the half of the last label of the steps that may lie beyond the axis
        padding: [
          8,
          (plot) => {
            const room = labels.reduce((most, { label }) => Math.max(most, labelWidth(plot, label) + 10), 0)
            return Math.max(8, Math.ceil(labelWidth(plot, this.lastLabel) / 2), room)
          },
          null,
          null,
        ],
        scales: {
          x: { time: false, range: (_, low, high) => this.#steps(low, high) },
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
            // the values as they were measured, behind smoothed ones
            label: `${line.label}, raw`,
            stroke: translucent(cssColour(`--line${line.colour}`), 0.3),
            width: 1,
            spanGaps: true,
            points: { show: false },
            show: this.#showsRaw(line),
          })),
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
          drawAxes: [(plot) => this.#drawBehind(plot)],
          draw: [(plot) => this.#drawLabels(plot, labels)],
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
    const rows = [...this.raw.values, ...this.data.values]
    return /** @type {any} */ ([this.data.steps, ...rows.map((row) => (factor === 1 ? row : scaled(row)))])
  }

  /** @param {Line} line */
  #showsRaw(line) {
    return smoothingOf(line, this.smoothing) > 0 && !this.hidden.has(line.label)
  }

  /**
   * Labels at the ends of lines, where there are few of them and they leave the chart its room.
   *
   * @returns {{ label: string, line: Line }[]}
   */
  #endLabels() {
    const shown = this.lines.filter(({ label }) => !this.hidden.has(label))
    const longest = shown.reduce((most, { short }) => Math.max(most, short.length), 0)
    const room = this.holder.clientWidth
    if (shown.length < 2 || shown.length > 6 || longest * 7 > room / 4) return []
    return shown.map((line) => ({ label: line.short, line }))
  }

  /**
   * A run begins at step 0, also where its first value is later.
   *
   * @param {number | null} low
   * @param {number | null} high
   * @returns {import('uplot').Range.MinMax}
   */
  #steps(low, high) {
    if (low === null || high === null) return [0, 1]
    const first = this.data.steps[0] ?? 0
    const last = this.data.steps.at(-1) ?? 0
    const from = low <= first && high >= last && first <= last / 10 ? 0 : low
    return from === high ? [Math.max(0, from - 1), high + 1] : [from, high]
  }

  /**
   * Bands of intervals, the level that a run began at, and the steps at which it was resumed or warned.
   *
   * @param {import('uplot')} plot
   */
  #drawBehind(plot) {
    const { ctx, bbox } = plot
    const factor = Number(`1e${this.exponent}`)
    const ratio = devicePixelRatio
    const at = (/** @type {number} */ value) => plot.valToPos(value / factor, 'y', true)
    ctx.save()
    ctx.beginPath()
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height)
    ctx.clip()
    for (const { curve, colour, label } of this.lines) {
      if (this.hidden.has(label)) continue
      const stroke = cssColour(`--line${colour}`)
      const { low, high, steps, values } = curve
      if (low !== undefined && high !== undefined) {
        ctx.fillStyle = translucent(stroke, 0.12)
        ctx.beginPath()
        for (const [i, step] of steps.entries()) ctx.lineTo(plot.valToPos(step, 'x', true), at(high[i] ?? 0))
        for (let i = steps.length - 1; i >= 0; i--) ctx.lineTo(plot.valToPos(steps[i] ?? 0, 'x', true), at(low[i] ?? 0))
        ctx.fill()
      }
      if (steps[0] !== 0 || steps.length < 2) continue
      const level = at(values[0] ?? 0)
      ctx.strokeStyle = translucent(stroke, 0.6)
      ctx.lineWidth = ratio
      ctx.setLineDash([2 * ratio, 4 * ratio])
      ctx.beginPath()
      ctx.moveTo(bbox.left, level)
      ctx.lineTo(bbox.left + bbox.width, level)
      ctx.stroke()
    }
    for (const { step, type, colour } of this.marks) {
      const x = plot.valToPos(step, 'x', true)
      ctx.strokeStyle = ctx.fillStyle = type === 'warning' ? cssColour('--warn') : translucent(cssColour(`--line${colour}`), 0.8)
      ctx.lineWidth = ratio
      ctx.setLineDash(type === 'warning' ? [] : [6 * ratio, 3 * ratio])
      ctx.beginPath()
      if (type === 'resume') {
        ctx.moveTo(x, bbox.top)
        ctx.lineTo(x, bbox.top + bbox.height)
        ctx.stroke()
      } else {
        const bottom = bbox.top + bbox.height
        ctx.moveTo(x, bottom - 8 * ratio)
        ctx.lineTo(x - 4 * ratio, bottom)
        ctx.lineTo(x + 4 * ratio, bottom)
        ctx.fill()
      }
    }
    ctx.restore()
  }

  /**
   * The names of lines at their ends, moved apart where they would lie over each other.
   *
   * @param {import('uplot')} plot
   * @param {readonly { label: string, line: Line }[]} labels
   */
  #drawLabels(plot, labels) {
    const { ctx, bbox } = plot
    const ratio = devicePixelRatio
    const height = 13 * ratio
    const factor = Number(`1e${this.exponent}`)
    const placed = labels.map(({ label, line }) => {
      const row = this.data.values[this.lines.indexOf(line)] ?? []
      const value = row.findLast((one) => one !== null) ?? 0
      const y = plot.valToPos(value / factor, 'y', true)
      return { label, line, y: Math.min(Math.max(y, bbox.top + height / 2), bbox.top + bbox.height - height / 2) }
    })
    placed.sort((a, b) => a.y - b.y)
    for (let i = 1; i < placed.length; i++) {
      const [above, own] = [placed[i - 1], placed[i]]
      if (above !== undefined && own !== undefined) own.y = Math.max(own.y, above.y + height)
    }
    let bottom = bbox.top + bbox.height - height / 2
    for (const own of placed.toReversed()) {
      own.y = Math.min(own.y, bottom)
      bottom = own.y - height
    }
    ctx.save()
    ctx.font = `${12 * ratio}px system-ui, sans-serif`
    ctx.textAlign = 'left'
    ctx.textBaseline = 'middle'
    for (const { label, line, y } of placed) {
      ctx.fillStyle = cssColour(`--line${line.colour}`)
      ctx.fillText(label, bbox.left + bbox.width + 6 * ratio, y)
    }
    ctx.restore()
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
      ...this.lines.map((line) => {
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
          this.draw()
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
      const [begin, end] = /** @type {[number, number]} */ ([steps[0], steps[last]])
      const width = Math.min((max - min) * (event.key === '+' ? 0.5 : 2), end - begin)
      const low = Math.min(Math.max(centre - width / 2, begin), end - width) // between the first step and the last
      if (width > 0) plot.setScale('x', { min: low, max: low + width })
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

/** @param {readonly number[] | undefined} values */
function mean(values) {
  return values === undefined || values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length
}

/** @param {NonNullable<RunData['facts']>} facts */
function sizeText({ parameters, trained }) {
  return trained === parameters ? format(parameters) : `${format(parameters)}, ${format(trained)} trained`
}

/**
 * A value of a curve, with its interval where there is one.
 *
 * @param {Curve} curve
 * @param {number} place
 */
function withInterval({ values, low, high }, place) {
  const text = format(values[place])
  return low === undefined || high === undefined ? text : `${text} (${format(low[place])} to ${format(high[place])})`
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
    this.choseSmoothing = false
    this.followsCompletions = true
    this.completionStep = 0
    const smoothing = /** @type {HTMLInputElement} */ (byId('smoothing'))
    smoothing.addEventListener('input', () => {
      this.choseSmoothing = true
      this.showCharts()
    })
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
    this.showRuns()
    this.constants = this.constantCharts()
    const shape = JSON.stringify([data.sections, [...this.constants]])
    if (shape !== this.shape) this.build()
    this.shape = shape
    this.showCharts()
    this.showCompletions()
    this.showNotes()
    this.showSummary()
    this.showConfig()
    this.showLinks()
  }

  /** The runs beside each other: what they reached, what they cost, and in what they differ. */
  showRuns() {
    const { runs } = this.data
    const heads = runs.map((run, i) => {
      const stroke = runs.length === 1 ? [] : [swatch({ ...runStyle(i, this.data.colours), dash: [] })]
      return element('th', { scope: 'col' }, ...stroke, run.name)
    })
    /** @type {(name: string, values: readonly (string | Node)[]) => HTMLElement[]} */
    const row = (name, values) =>
      values.every((value) => value === '–')
        ? []
        : [element('tr', {}, element('th', { scope: 'row' }, name), ...values.map((value) => element('td', {}, value)))]
    const each = (/** @type {(run: RunData) => string} */ text) => runs.map(text)
    const rows = [
      ...row(
        'trainer',
        each(({ trainer }) => trainer ?? '–'),
      ),
      ...row(
        'step',
        each(({ step, steps }) => (steps === null ? String(step) : `${step} of ${steps}`)),
      ),
      ...this.evaluationRows(row),
      ...row(
        'time',
        each(({ seconds }) => duration(seconds)),
      ),
      ...row(
        'tokens/s',
        each(({ curves }) => format(mean(own(curves, 'tokens_per_second')?.values))),
      ),
      ...row(
        'parameters',
        each(({ facts }) => (facts === null ? '–' : sizeText(facts))),
      ),
      ...row(
        'device',
        each(({ facts }) => (facts === null ? '–' : `${facts.device}, ${facts.dtype}`)),
      ),
      ...row(
        'data',
        each(({ facts }) => facts?.data ?? '–'),
      ),
      ...this.differentOptions().flatMap((name) =>
        row(
          name.replace(/^options\./, ''),
          each(({ options }) => own(options, name) ?? '–'),
        ),
      ),
    ]
    const caption = element('caption', { class: 'hidden' }, 'Runs')
    const head = element('thead', {}, element('tr', {}, element('td', {}), ...heads))
    byId('runs').replaceChildren(scrollable(element('table', {}, caption, head, element('tbody', {}, ...rows)), 'Runs'))
  }

  /**
   * The last evaluation of each loop count with its interval, and where the most loops began and were best.
   *
   * @param {(name: string, values: readonly (string | Node)[]) => HTMLElement[]} row
   */
  evaluationRows(row) {
    const { runs } = this.data
    const names = [...new Set(runs.flatMap(({ curves }) => Object.keys(curves)))].filter((name) =>
      /^eval\/(.+\/)?loop_\d+\/(reward|accuracy)$/.test(name),
    )
    names.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    const deepest = names.filter((name, i) => !(names[i + 1] ?? '').startsWith(name.replace(/loop_.*/, 'loop_')))
    return names.flatMap((name) => {
      const [, task = '', loops, what] = /^eval\/(.+\/)?loop_(\d+)\/(\w+)$/.exec(name) ?? []
      const title = `${task.replace('/', ' ')}${what}, ${loops} ${loops === '1' ? 'loop' : 'loops'}`
      const curves = runs.map((run) => own(run.curves, name))
      const values = curves.map((curve) => (curve === undefined ? '–' : withInterval(curve, curve.steps.length - 1)))
      if (!deepest.includes(name)) return row(title, values)
      const starts = curves.map((curve) => (curve === undefined || (curve.steps[0] ?? 0) > 0 ? '–' : withInterval(curve, 0)))
      const best = curves.map((curve) => {
        if (curve === undefined) return '–'
        const place = curve.values.indexOf(curve.values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY))
        return `${format(curve.values[place])} at step ${curve.steps[place]}`
      })
      return [...row(title, values), ...row('— at the start', starts), ...row('— best', best)]
    })
  }

  /** Options that are not the same in all runs; those that name a run's own folder aside. */
  differentOptions() {
    const { runs } = this.data
    if (runs.length === 1) return []
    const names = [...new Set(runs.flatMap(({ options }) => Object.keys(options)))]
    return names.filter(
      (name) => name !== 'runDir' && name !== 'trainer' && new Set(runs.map(({ options }) => own(options, name))).size > 1,
    )
  }

  /** The metrics of charts that would show nothing but flat lines, with their values. */
  constantCharts() {
    /** @type {Map<string, string[]>} */
    const found = new Map()
    for (const { charts } of this.data.sections)
      for (const spec of charts) {
        const lines = this.lines(spec)
        if (lines.length === 0 || !lines.every(({ curve }) => isConstant(curve))) continue
        found.set(
          JSON.stringify(spec),
          spec.lines.map(({ metric }) => {
            const values = new Set(lines.filter((line) => line.metric === metric).map(({ curve }) => format(curve.last)))
            return `${metric} ${[...values].join(' or ')}`
          }),
        )
      }
    return found
  }

  /** @type {Map<string, string[]>} */
  constants = new Map()

  /** Resumes and warnings, as they are marked in the charts. */
  showNotes() {
    const { runs } = this.data
    const notes = runs.flatMap(({ name, notes }) => notes.map((note) => ({ name, ...note })))
    byId('notes').hidden = notes.length === 0
    const rows = notes.map(({ name, step, type, message }) => {
      const text = type === 'resume' ? 'resumed' : message
      const cells = [...(runs.length === 1 ? [] : [element('td', {}, name)]), element('td', { class: `note ${type}` }, text)]
      return element('tr', {}, element('th', { scope: 'row' }, String(step)), ...cells)
    })
    const head = ['step', ...(runs.length === 1 ? [] : ['run']), 'what'].map((label) => element('th', { scope: 'col' }, label))
    const caption = element('caption', {}, 'A dashed line marks a resume, a triangle at the bottom a warning.')
    const table = element(
      'table',
      { class: 'notes' },
      caption,
      element('thead', {}, element('tr', {}, ...head)),
      element('tbody', {}, ...rows),
    )
    byId('notes-table').replaceChildren(scrollable(table, 'Resumes and warnings'))
  }

  /** The sections and their charts, when there are other ones than before. */
  build() {
    const { sections } = this.data
    /** @type {Map<string, Chart>} */
    const charts = new Map()
    const nodes = sections.map(({ title, charts: specs }, i) => {
      const drawn = specs.filter((spec) => !this.constants.has(JSON.stringify(spec)))
      const constant = specs.flatMap((spec) => this.constants.get(JSON.stringify(spec)) ?? [])
      const made = drawn.map((spec) => {
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
        ...(made.length === 0 ? [] : [element('div', { class: 'charts' }, ...made)]),
        ...(constant.length === 0
          ? []
          : [element('p', { class: 'constant' }, element('b', {}, 'Constant: '), constant.join(', '))]),
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
    const input = /** @type {HTMLInputElement} */ (byId('smoothing'))
    const long = this.data.runs.some(({ curves }) => Object.values(curves).some(({ steps }) => steps.length >= fewPoints))
    if (!this.choseSmoothing) input.value = long ? String(usualSmoothing) : '0'
    const smoothing = Number(input.value)
    byId('smoothing-value').textContent = smoothing === 0 ? 'off' : String(smoothing)
    const marks = this.data.runs.flatMap(({ notes }, run) =>
      notes.map(({ step, type }) => ({ step, type, colour: runStyle(run, this.data.colours).colour })),
    )
    for (const section of this.data.sections)
      for (const spec of section.charts) this.charts.get(JSON.stringify(spec))?.show(this.lines(spec), smoothing, marks)
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
          return {
            metric,
            label,
            short: label,
            colour: m % colours,
            dash: dashAt(Math.floor(m / colours)),
            width: 2,
            curve,
            run: r,
          }
        const withRun = (/** @type {string} */ name) => (spec.lines.length === 1 ? name : `${label}, ${name}`)
        return {
          metric,
          run: r,
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
    const files = runs.map(({ name, config }) =>
      element('details', {}, element('summary', {}, name), scrollable(element('pre', {}, config), `config.yaml of ${name}`)),
    )
    box.replaceChildren(...files)
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
