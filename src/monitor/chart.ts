/** One curve of a {@link lineChart}. */
export interface Series {
  name: string
  /** Points in ascending order of x. Points that are not finite interrupt the line. */
  points: readonly (readonly [x: number, y: number])[]
  /** One interval per point, low and high. It is drawn as a bar with a dot at the point. */
  intervals?: readonly (readonly [low: number, high: number])[]
}

/** One panel: axes and their curves. */
export interface Panel {
  title: string
  xLabel: string
  yLabel: string
  series: readonly Series[]
  /** Range of the y axis. Defaults to that of the points and intervals. */
  yRange?: readonly [number, number]
  /** Positions of the labels on the x axis. Defaults to round numbers. */
  xTicks?: readonly number[]
  /** Extends the x axis on both sides by this much. Defaults to 0. */
  xPadding?: number
}

/** A chart of one or more panels side by side. */
export interface ChartOptions {
  title: string
  /** What the chart shows, for readers who cannot see it. */
  description: string
  panels: readonly Panel[]
  /** Size of a panel in pixels. Defaults to 460 × 300. */
  panelWidth?: number
  panelHeight?: number
}

const margin = { left: 56, right: 16, top: 56, bottom: 48 }
const legendHeight = 18

/** Colours that colour-blind readers can distinguish (Okabe and Ito, 2008), on a light background. */
export const palette = ['#0072b2', '#d55e00', '#009e73', '#aa4499', '#b07c00', '#56606a']
/** The same, on a dark background. */
export const darkPalette = ['#56b4e9', '#ff9a4d', '#3ddc97', '#f08fd0', '#f0e442', '#b8c0c8']

const style = (colours: readonly string[], ink: string, faint: string, paper: string) =>
  [
    `.paper{fill:${paper}}.ink{fill:${ink}}.faint{stroke:${faint};stroke-width:1;fill:none}.axis{stroke:${ink};stroke-width:1;fill:none}`,
    ...colours.map((colour, i) => `.line${i}{stroke:${colour}}.dot${i}{fill:${colour}}`),
  ].join('')

/**
 * Draws line charts as one self-contained SVG: axes with round ticks, a legend, light and dark colours by the reader's setting,
 * and a title and description for screen readers.
 *
 * @returns the text of an SVG file
 *
 * @example
 * ```ts
 * const points: [number, number][] = [[0, 0.1], [100, 0.7]]
 * const panel = { title: 'Reward', xLabel: 'step', yLabel: 'reward', series: [{ name: 'mean', points }] }
 * await writeFile('reward.svg', lineChart({ title: 'A run', description: 'Reward rises from 0.1 to 0.7.', panels: [panel] }))
 * ```
 */
export function lineChart(options: ChartOptions): string {
  const { panelWidth = 460, panelHeight = 300, panels } = options
  const legendRows = Math.max(...panels.map(({ series }) => Math.ceil(series.length / 3)))
  const width = panelWidth * panels.length
  const height = panelHeight + legendRows * legendHeight
  const light = style(palette, '#1f2328', '#d8dee4', '#ffffff')
  const dark = style(darkPalette, '#e6edf3', '#30363d', '#0d1117')
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="chart-title chart-description">`,
    `<title id="chart-title">${escapeXml(options.title)}</title>`,
    `<desc id="chart-description">${escapeXml(options.description)}</desc>`,
    `<style>text{font:12px system-ui,sans-serif}.title{font-weight:600;font-size:14px}.curve{fill:none;stroke-width:2;stroke-linejoin:round}`,
    `${light}@media(prefers-color-scheme:dark){${dark}}</style>`,
    `<rect class="paper" width="${width}" height="${height}"/>`,
    ...panels.map((panel, i) => drawPanel(panel, i * panelWidth, panelWidth, panelHeight)),
    '</svg>\n',
  ].join('\n')
}

/**
 * Round numbers that span a range: multiples of 1, 2 or 5 times a power of ten.
 *
 * @param count approximate number of ticks
 */
export function ticks(low: number, high: number, count: number): number[] {
  const rough = (high - low) / count
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999)!
  const first = Math.ceil(low / step - 1e-9)
  const last = Math.floor(high / step + 1e-9)
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)))
}

function drawPanel(panel: Panel, offset: number, width: number, height: number): string {
  const { xPadding = 0 } = panel
  const points = panel.series.flatMap((series) => series.points).filter((point) => point.every(Number.isFinite))
  const ends = panel.series.flatMap(({ intervals = [] }) => intervals.flat()).filter(Number.isFinite)
  const [xFirst, xLast] = range(points.map(([x]) => x))
  const [xLow, xHigh] = [xFirst - xPadding, xLast + xPadding]
  const [yLow, yHigh] = panel.yRange ?? range([...points.map(([, y]) => y), ...ends])
  const left = offset + margin.left
  const right = offset + width - margin.right
  const bottom = height - margin.bottom
  const x = (value: number) => round(left + ((value - xLow) / (xHigh - xLow)) * (right - left))
  const y = (value: number) => round(bottom - ((value - yLow) / (yHigh - yLow)) * (bottom - margin.top))
  return [
    text('title ink', left, 24, panel.title),
    text('ink', left, 44, panel.yLabel),
    ...ticks(yLow, yHigh, 5).flatMap((value) => [
      `<path class="faint" d="M${left} ${y(value)}H${right}"/>`,
      text('ink', left - 8, y(value) + 4, String(value), 'end'),
    ]),
    ...(panel.xTicks ?? ticks(xLow, xHigh, 6)).flatMap((value) => [
      `<path class="axis" d="M${x(value)} ${bottom}v4"/>`,
      text('ink', x(value), bottom + 18, String(value), 'middle'),
    ]),
    `<path class="axis" d="M${left} ${margin.top}V${bottom}H${right}"/>`,
    text('ink', (left + right) / 2, bottom + 38, panel.xLabel, 'middle'),
    ...panel.series.map((series, i) => curve(series, i % palette.length, x, y)),
    ...panel.series.flatMap((series, i) => bars(series, i % palette.length, x, y)),
    ...panel.series.map((series, i) => {
      const column = left + (i % 3) * ((right - left) / 3)
      const row = height + Math.floor(i / 3) * legendHeight + 4
      return `<circle class="dot${i % palette.length}" cx="${column + 5}" cy="${row}" r="5"/>${text('ink', column + 16, row + 4, series.name)}`
    }),
  ].join('\n')
}

function curve(series: Series, colour: number, x: (value: number) => number, y: (value: number) => number): string {
  let pen = 'M'
  let path = ''
  for (const [px, py] of series.points) {
    if (Number.isFinite(px) && Number.isFinite(py)) {
      path += `${pen}${x(px)} ${y(py)}`
      pen = 'L'
    } else pen = 'M'
  }
  return `<path class="curve line${colour}" d="${path}"/>`
}

/** Draws intervals with their points. */
function bars(series: Series, colour: number, x: (value: number) => number, y: (value: number) => number): string[] {
  return (series.intervals ?? []).flatMap(([low, high], i) => {
    const [px, py] = series.points[i]!
    if (![px, py, low, high].every(Number.isFinite)) return []
    return `<path class="curve line${colour}" d="M${x(px)} ${y(low)}V${y(high)}"/><circle class="dot${colour}" cx="${x(px)}" cy="${y(py)}" r="3"/>`
  })
}

/** Smallest and largest value. If they are equal, the range is widened. */
function range(values: readonly number[]): [number, number] {
  if (values.length === 0) return [0, 1]
  const low = values.reduce((a, b) => Math.min(a, b))
  const high = values.reduce((a, b) => Math.max(a, b))
  return low === high ? [low - 0.5, high + 0.5] : [low, high]
}

function text(style: string, x: number, y: number, content: string, anchor = 'start'): string {
  return `<text class="${style}" x="${round(x)}" y="${round(y)}" text-anchor="${anchor}">${escapeXml(content)}</text>`
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function escapeXml(content: string): string {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}
