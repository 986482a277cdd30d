// Reports and `looplm watch`, as files, over HTTP and in a browser.
import { appendFile, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import axe from 'axe-core'
import type { Browser, BrowserContextOptions, Page } from 'playwright-core'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { darkColours, lightColours } from '../../src/monitor/page-style.js'
import { reportData, reportPage, writeReport } from '../../src/monitor/report.js'
import { RunReader } from '../../src/monitor/run-reader.js'
import { type Watcher, watch } from '../../src/monitor/watch.js'
import { noBrowser, openBrowser } from '../browser.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-report-'))
})
afterAll(() => rm(root, { recursive: true }))

const hostile = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
const lines = (records: readonly object[]) => records.map((record) => `${JSON.stringify(record)}\n`).join('')

function step(i: number, from = 0): object {
  const loops = [1, 2].flatMap((t) => [
    [`loop_${t}/logprob`, -2 / t - 1 / i],
    [`loop_${t}/weight`, t / 3],
    [`loop_${t}/exit_prob`, t / 3],
  ])
  const reward = from + (1 - from) * (1 - 1 / i)
  return { type: 'step', step: i, reward, grad_norm: 1 / i, entropy: 2, kl: 0.01 * i, ...Object.fromEntries(loops) }
}

/** A run folder with some steps, one evaluation and a completion that would like to be HTML. */
async function makeRun(name: string, steps: number, from = 0): Promise<string> {
  const path = join(root, name)
  await mkdir(path, { recursive: true })
  const all = Array.from({ length: steps }, (_, i) => step(i + 1, from))
  const evaluation = { type: 'eval', step: steps, 'eval/loop_1/reward': 0.25, 'eval/loop_2/reward': 0.75, 'a <b>& name': 1 }
  await writeFile(join(path, 'metrics.jsonl'), lines([...all, evaluation]))
  const completions = [1, steps].flatMap((at) => [
    { step: at, prompt: '1+1=', completion: '2', answer: '2', reward: 1, rewards: { exact: 1, short: 0.5 } },
    { step: at, prompt: '1+1=', completion: hostile, answer: '2', reward: -0.5, rewards: { exact: 0, short: -0.5 } },
  ])
  await writeFile(join(path, 'completions.jsonl'), lines(completions))
  await writeFile(join(path, 'config.yaml'), `trainer: rltt\noptions:\n  steps: ${steps}\n  learningRate: ${1 + from}\n`)
  return path
}

describe('a run that is read while it is written', () => {
  it('has complete lines at once, and a partial line once it is complete', async () => {
    const path = await makeRun('growing', 3)
    const reader = new RunReader(path)
    expect((await reader.read()).curves.reward).toMatchObject({ steps: [1, 2, 3], values: [0, 0.5, 1 - 1 / 3], last: 1 - 1 / 3 })
    const line = lines([step(4)])
    await appendFile(join(path, 'metrics.jsonl'), line.slice(0, 30))
    expect((await reader.read()).step).toBe(3)
    await appendFile(join(path, 'metrics.jsonl'), line.slice(30))
    const run = await reader.read()
    expect(run).toMatchObject({ step: 4, steps: 3, trainer: 'rltt', stepsPerPoint: 1, options: { 'options.learningRate': '1' } })
    expect(run.curves.reward).toMatchObject({ steps: [1, 2, 3, 4], min: 0, max: 0.75, last: 0.75 })
    expect(run.curves['eval/loop_2/reward']).toMatchObject({ steps: [3], values: [0.75] })
  })

  it('is read anew when a resume has dropped steps', async () => {
    const path = await makeRun('resumed', 5)
    const reader = new RunReader(path)
    await reader.read()
    await writeFile(join(path, 'metrics.jsonl.tmp'), lines([step(1), step(2)]))
    await rename(join(path, 'metrics.jsonl.tmp'), join(path, 'metrics.jsonl'))
    expect((await reader.read()).curves.reward?.steps).toEqual([1, 2])
  })

  it('ignores invalid lines, and thins out a long run but keeps its extremes', async () => {
    const path = join(root, 'long')
    await mkdir(path)
    const bad = [
      '',
      'null',
      '[1]',
      '{"step":-1,"reward":9}',
      '{"step":1.5,"reward":9}',
      '{"step":2,"reward":null}',
      '\u0000',
      '{"a',
    ]
    const steps = Array.from({ length: 9000 }, (_, i) => ({ step: i + 1, reward: i === 4321 ? 100 : 1 }))
    await writeFile(join(path, 'metrics.jsonl'), `${bad.join('\n')}\n${lines(steps)}`)
    await writeFile(
      join(path, 'completions.jsonl'),
      lines(steps.map((at) => ({ ...at, prompt: 'x'.repeat(at.step === 1 ? 5000 : 50), completion: 'y' }))),
    )
    const { curves, stepsPerPoint, step, completions } = await new RunReader(path).read()
    expect({ stepsPerPoint, step }).toEqual({ stepsPerPoint: 5, step: 9000 })
    expect(curves.reward!.steps).toHaveLength(1800)
    expect(curves.reward).toMatchObject({ min: 1, max: 100, last: 1 })
    expect(completions.length).toBeLessThanOrEqual(40)
    expect([completions[0]!.step, completions.at(-1)!.step]).toEqual([1, 9000])
    expect(completions[0]!.groups[0]!.prompt).toMatch(/^x{4000}… \(5000 characters\)$/)
  })

  it('keeps every evaluation of a long run, the one before its first step too', async () => {
    const path = join(root, 'long-evaluated')
    await mkdir(path)
    const evaluations = [0.4, 0.1, 0.2, 0.3].map((reward, i) => ({ type: 'eval', step: 3000 * i, 'eval/loop_2/reward': reward }))
    const steps = Array.from({ length: 9000 }, (_, i) => step(i + 1))
    await writeFile(
      join(path, 'metrics.jsonl'),
      lines([evaluations[0]!, ...steps.slice(0, -1), ...evaluations.slice(1), steps.at(-1)!]),
    )
    const { curves } = await new RunReader(path).read()
    expect(curves['eval/loop_2/reward']).toMatchObject({ steps: [0, 3000, 6000, 9000], values: [0.4, 0.1, 0.2, 0.3] })
    expect(curves.reward!.steps).toHaveLength(1800)
  })

  it('fails for a missing folder and shows an empty one as empty', async () => {
    await expect(new RunReader(join(root, 'nowhere')).read()).rejects.toThrow(/no run folder .*nowhere/)
    await mkdir(join(root, 'empty'))
    expect(await new RunReader(join(root, 'empty')).read()).toMatchObject({ step: 0, curves: {}, completions: [] })
  })
})

describe('the report file', () => {
  it('is self-contained, and no string of a run becomes HTML', async () => {
    const path = join(root, 'report.html')
    await writeReport([await makeRun('run', 20)], path)
    const html = await readFile(path, 'utf8')
    expect(html).not.toMatch(/<(link|script|img)[^>]* (src|href)="(?!data:,")/)
    expect(html.match(/<script/g)).toHaveLength(3)
    const json = /<script type="application\/json" id="data">(.*?)<\/script>/s.exec(html)![1]!
    const data = JSON.parse(json)
    expect(data.runs[0].completions[0].groups[0].completions[1].text).toBe(hostile)
    const titles = data.sections.flatMap(({ charts }: { charts: { title: string }[] }) => charts.map(({ title }) => title))
    const expected = [
      'Reward',
      'Accuracy by loops',
      'Entropy',
      'KL divergence',
      'Gradient norm',
      'Weight by loop',
      'Exit distribution',
    ]
    expect(titles).toEqual(expect.arrayContaining([...expected, 'a <b>& name']))
  })

  it('numbers runs of the same name, and fails for a missing folder', async () => {
    const runs = [await makeRun('a/final', 3), await makeRun('b/final', 3)]
    const { runs: read } = await reportData(runs.map((run) => new RunReader(run)))
    expect(read.map(({ name }) => name)).toEqual(['final (1)', 'final (2)'])
    await expect(writeReport([join(root, 'nowhere')], join(root, 'x.html'))).rejects.toThrow(/no run folder/)
    await expect(writeReport('runs' as never, 'x.html')).rejects.toThrow(
      /writeReport: runs must be an array of run folders, got 'runs'/,
    )
    await expect(writeReport([runs[0]!, ''], 'x.html')).rejects.toThrow(/runs\[1\] must be a run folder, got an empty string/)
    await expect(writeReport(runs, join(root, 'no', 'such', 'folder.html'))).rejects.toMatchObject({
      code: 'INVALID_FILE',
      message: expect.stringMatching(/cannot write .*folder\.html: it does not exist \(ENOENT\)/),
    })
  })
})

describe('the server of looplm watch', () => {
  let watcher: Watcher
  let run: string
  beforeAll(async () => {
    run = await makeRun('watched', 3)
    watcher = await watch([run])
  })
  afterAll(() => watcher.close())

  const ask = (path: string, headers: Record<string, string> = {}, method = 'GET') =>
    new Promise<{ status: number; headers: Record<string, unknown>; body: string }>((resolve, reject) => {
      const request = get(new URL(path, watcher.url), { headers, method }, (response) => {
        let body = ''
        response.on('data', (text) => {
          body += text
        })
        response.on('end', () => resolve({ status: response.statusCode!, headers: response.headers, body }))
      })
      request.on('error', reject)
    })

  it('serves the page, and data that changes as the run continues', async () => {
    expect(watcher.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/$/)
    const page = await ask('/')
    expect(page.body).toMatch(/^<!doctype html>/)
    expect(page.headers['content-security-policy']).toMatch("default-src 'none'")
    const first = await ask('/data.json')
    expect(JSON.parse(first.body)).toMatchObject({ live: true, runs: [{ step: 3 }] })
    const etag = String(first.headers.etag)
    expect((await ask('/data.json', { 'If-None-Match': etag })).status).toBe(304)
    await appendFile(join(run, 'metrics.jsonl'), lines([step(4)]))
    const second = await ask('/data.json', { 'If-None-Match': etag })
    expect(JSON.parse(second.body).runs[0].step).toBe(4)
  })

  it('recovers when a missing run folder is back, with or without its files', async () => {
    const path = await makeRun('away', 2)
    const other = await watch([path])
    const steps = async () => {
      const answer = await fetch(new URL('data.json', other.url))
      return answer.ok ? ((await answer.json()) as { runs: { step: number }[] }).runs.map(({ step }) => step) : answer.status
    }
    try {
      await rename(path, `${path}-kept`)
      expect(await steps()).toBe(500)
      await mkdir(path)
      expect(await steps()).toEqual([0])
      await rm(path, { recursive: true })
      await rename(`${path}-kept`, path)
      expect(await steps()).toEqual([2])
    } finally {
      await other.close()
    }
  })

  it('rejects other host names, unknown paths and POST', async () => {
    expect((await ask('/', { Host: 'evil.example:80' })).status).toBe(403)
    expect((await ask('/../../etc/passwd')).status).toBe(404)
    expect((await ask('/', {}, 'POST')).status).toBe(405)
  })

  it('fails with a clear message for a taken port and for a missing folder', async () => {
    await expect(watch([run], Number(new URL(watcher.url).port))).rejects.toThrow(/port \d+ is taken; choose another with --port/)
    await expect(watch([join(root, 'nowhere')])).rejects.toThrow(/no run folder/)
    await expect(watch(run as never)).rejects.toThrow(/watch: runs must be an array of run folders/)
  })
})

it('curve colours have enough contrast on light and dark panels', () => {
  const luminance = (colour: string) => {
    const [r, g, b] = [1, 3, 5].map((at) => {
      const part = Number.parseInt(colour.slice(at, at + 2), 16) / 255
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
    }) as [number, number, number]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const contrast = (a: string, b: string) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y) as [number, number]
    return (high + 0.05) / (low + 0.05)
  }
  for (const colour of lightColours) expect([colour, contrast(colour, '#f6f8fa') >= 3]).toEqual([colour, true]) // WCAG 1.4.11
  for (const colour of darkColours) expect([colour, contrast(colour, '#161b22') >= 3]).toEqual([colour, true])
  expect(new Set(lightColours).size).toBe(8)
  expect(darkColours).toHaveLength(8)
})

/** How a page is shown. */
interface Look {
  colorScheme?: 'light' | 'dark'
  width?: number
  height?: number
}

describe.skipIf(noBrowser !== undefined)('the report in a browser', { timeout: 120_000 }, () => {
  let browser: Browser
  let single: string
  let comparison: string
  const problems: string[] = []
  beforeAll(async () => {
    browser = await openBrowser()
    const runs = [await makeRun('rltt', 30), await makeRun('grpo', 20, 0.5)]
    single = join(root, 'single.html')
    comparison = join(root, 'comparison.html')
    await writeReport(runs.slice(0, 1), single)
    await writeReport(runs, comparison)
  }, 60_000)
  afterAll(() => browser?.close())
  beforeEach(() => {
    problems.length = 0
  })

  /** One page, which loads what each test shows anew: a page of its own would be a process. Its console, errors and requests are watched. */
  let watched: Promise<Page> | undefined
  let shown: string
  async function watchedPage(): Promise<Page> {
    const page = await browser.newPage()
    page.on('console', (message) => problems.push(`console: ${message.text()}`))
    page.on('pageerror', (error) => problems.push(`error: ${error.message}`))
    page.on('request', (request) => {
      if (request.url() !== shown && !request.url().startsWith('data:')) problems.push(`request: ${request.url()}`)
    })
    return page
  }
  async function show(url: string, { colorScheme = 'light', width = 1280, height = 720 }: Look = {}): Promise<Page> {
    watched ??= watchedPage()
    const page = await watched
    await page.setViewportSize({ width, height })
    await page.emulateMedia({ colorScheme })
    shown = url
    await page.goto(url)
    await page.waitForSelector('.chart canvas')
    return page
  }

  /** Whether something in a curve's colour was drawn into the first chart. */
  const drawn = (page: Page) =>
    page.evaluate(`(() => {
      const canvas = document.querySelector('.chart canvas')
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data
      const probe = document.createElement('i')
      probe.style.color = 'var(--line0)'
      document.body.append(probe)
      const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number)
      probe.remove()
      let count = 0
      for (let i = 0; i < pixels.length; i += 4) if (pixels[i] === r && pixels[i + 1] === g && pixels[i + 2] === b) count++
      return count
    })()`)

  it.each([
    ['light', 1400],
    ['light', 360],
    ['dark', 1400],
    ['dark', 360],
  ] as const)('is drawn in %s colours at %i pixels without an error or a request', async (colorScheme, width) => {
    for (const file of [single, comparison]) {
      const page = await show(pathToFileURL(file).href, { colorScheme, width, height: 900 })
      expect(await page.locator('.chart').count()).toBe(6)
      expect(await drawn(page)).toBeGreaterThan(100)
      expect(await page.evaluate('document.documentElement.scrollWidth')).toBe(width) // nothing sticks out
      const paper = await page.evaluate('getComputedStyle(document.body).backgroundColor')
      expect(paper).toBe(colorScheme === 'dark' ? 'rgb(13, 17, 23)' : 'rgb(255, 255, 255)')
    }
    expect(problems).toEqual([])
  })

  it('works with the keyboard and a screen reader', async () => {
    const page = await show(pathToFileURL(single).href)
    const chart = page.getByRole('slider', { name: 'Reward, values by step' })
    await chart.focus()
    await page.keyboard.press('Home')
    expect(await chart.getAttribute('aria-valuetext')).toBe('step 1, reward 0')
    await page.keyboard.press('ArrowRight')
    expect(await chart.getAttribute('aria-valuetext')).toBe('step 2, reward 0.5')
    await page.keyboard.press('End')
    expect(await chart.getAttribute('aria-valuenow')).toBe('30')
    await page.keyboard.press('ArrowLeft')
    expect(await chart.getAttribute('aria-valuenow')).toBe('29')
    for (const key of ['Home', 'PageUp', 'PageUp', 'PageUp', 'PageUp', 'ArrowRight', 'ArrowRight']) await page.keyboard.press(key)
    expect(await chart.getAttribute('aria-valuenow')).toBe('15') // in the middle, so that it stays there
    const picture = async () => String(await page.evaluate('document.querySelector(".chart canvas").toDataURL()'))
    const whole = await picture()
    await page.keyboard.press('+')
    await expect.poll(picture).not.toBe(whole)
    const half = await picture()
    await page.keyboard.press('+')
    await expect.poll(picture).not.toBe(half)
    await page.keyboard.press('-')
    await expect.poll(picture).toBe(half)
    await page.keyboard.press('Escape')
    await expect.poll(picture).toBe(whole)
    await page.keyboard.press('End') // zooms out from the edge too
    await page.keyboard.press('+')
    await expect.poll(picture).not.toBe(whole)
    await page.keyboard.press('-')
    await expect.poll(picture).toBe(whole)
    expect(await page.locator('#chart-reward-summary').textContent()).toMatch(
      /^reward: 0 at step 1, 0\.9667 at step 30, between 0 and 0\.9667\./,
    )

    const button = page.getByRole('button', { name: /^loop 2/ }).first()
    await button.focus()
    await page.keyboard.press('Enter')
    expect(await button.getAttribute('aria-pressed')).toBe('false')

    await page.getByText('Values as a table').first().focus()
    await page.keyboard.press('Enter')
    const table = page.locator('.chart table').first()
    await table.waitFor()
    expect(await table.locator('caption').textContent()).toBe('Reward')
    expect(await table.locator('tbody tr').count()).toBe(30)

    const unnamed = `[...document.querySelectorAll('button, input, [tabindex="0"]')].filter((node) =>
      !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)`
    expect(await page.evaluate(unnamed)).toEqual([])
    expect(problems).toEqual([])
  })

  it('has no axe violations, light or dark, with every table open', async () => {
    const short = join(root, 'short.html') // axe takes long for each cell of the tables
    await writeReport([await makeRun('short/rltt', 4), await makeRun('short/grpo', 3, 0.5)], short)
    const context = await browser.newContext({ bypassCSP: true })
    const page = await context.newPage()
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme })
      await page.goto(pathToFileURL(short).href)
      await page.waitForSelector('.chart canvas')
      await page.evaluate("document.querySelectorAll('.chart details').forEach((table) => (table.open = true))")
      await page.waitForFunction(
        "[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('td')?.checkVisibility())",
      )
      expect(await violations(page)).toEqual([])
    }
    await context.close()
  })

  /** What axe finds wrong with a page. */
  async function violations(page: Page) {
    await page.evaluate(axe.source)
    return page.evaluate(
      `axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]))`,
    )
  }

  it('shows completions side by side with their rewards, never as HTML', async () => {
    const page = await show(pathToFileURL(single).href, { width: 1000, height: 800 })
    const cards = page.locator('.completion')
    expect(await cards.allTextContents()).toEqual([
      'reward 1 (exact 1, short 0.5)2',
      `reward -0.5 (exact 0, short -0.5)${hostile}`,
    ])
    const boxes = await Promise.all([cards.nth(0).boundingBox(), cards.nth(1).boundingBox()])
    expect(boxes[0]!.y).toBe(boxes[1]!.y)
    expect(await page.title()).toBe('rltt – looplm')
    expect(await page.locator('#completion-groups img').count()).toBe(0)
    const slider = page.getByRole('slider', { name: 'Step', exact: true })
    await slider.focus()
    await page.keyboard.press('Home')
    expect(await page.locator('#completion-step-value').textContent()).toBe('step 1')
    expect(problems).toEqual([])
  })

  it('compares runs: their curves, their last values and the options that differ', async () => {
    const page = await show(pathToFileURL(comparison).href)
    expect(await page.locator('.chart').first().locator('.legend button').allTextContents()).toEqual([
      'rltt 0.9667',
      'grpo 0.975',
    ])
    const rows = await page.locator('#runs tbody tr').allTextContents()
    expect(rows).toEqual(
      expect.arrayContaining(['trainerrlttrltt', 'step30 of 3020 of 20', 'reward, 2 loops0.750.75', 'steps3020']),
    )
    expect(rows.at(-1)).toBe('learningRate11.5')
    expect(await page.locator('#config-text summary').allTextContents()).toEqual(['rltt', 'grpo'])
    expect(await page.locator('#completion-groups h3').allTextContents()).toEqual(['rltt, step 30', 'grpo, step 20'])
    expect(await page.locator('#summary-table tbody tr').first().textContent()).toBe('reward0.96670.975')
  })

  it('follows a run that continues, and says when the server stops answering', async () => {
    const run = await makeRun('live', 5)
    const watcher = await watch([run])
    const page = await browser.newPage()
    page.on('pageerror', (error) => problems.push(`error: ${error.message}`))
    page.on('console', (message) => problems.push(`console: ${message.text()}`))
    await page.goto(watcher.url)
    const chart = page.getByRole('slider', { name: 'Reward, values by step' })
    await expect.poll(() => chart.getAttribute('aria-valuetext')).toBe('step 5, reward 0.8')
    await chart.focus()
    await appendFile(join(run, 'metrics.jsonl'), lines([step(6), { ...step(8), tokens_per_second: 10 }]))
    await expect.poll(() => chart.getAttribute('aria-valuetext')).toBe('step 8, reward 0.875')
    expect(await page.getByRole('heading', { name: 'Throughput (tokens/s)' }).count()).toBe(1) // a metric that came later
    expect(await page.locator('#status').textContent()).toBe('Live: follows the run.')
    expect(problems).toEqual([])
    await watcher.close()
    await expect.poll(() => page.locator('#status').textContent()).toMatch(/does not answer/)
    await page.close()
  })

  /** A report of runs that are given by their steps, and the labels that its charts draw, by the chart's title. */
  async function showRuns(runs: Record<string, object[]>, options: BrowserContextOptions = {}) {
    const folders = Object.entries(runs).map(async ([name, records]) => {
      const path = join(root, 'given', name)
      await mkdir(path, { recursive: true })
      await writeFile(join(path, 'metrics.jsonl'), lines(records))
      return path
    })
    const path = join(root, 'given.html')
    await writeReport(await Promise.all(folders), path)
    const context = await browser.newContext(options)
    const page = await context.newPage()
    page.on('console', (message) => problems.push(`console: ${message.text()}`))
    page.on('pageerror', (error) => problems.push(`error: ${error.message}`))
    await page.addInitScript(`
      globalThis.drawn = []
      const { fillText } = CanvasRenderingContext2D.prototype
      CanvasRenderingContext2D.prototype.fillText = function (text, x, ...rest) {
        const { width } = this.measureText(text)
        const left = x + this.getTransform().e - { left: 0, start: 0, center: width / 2, right: width, end: width }[this.textAlign]
        const title = this.canvas.closest('figure')?.querySelector('h3').textContent
        drawn.push({ text, title, cut: left < 0 || left + width > this.canvas.width })
        return fillText.call(this, text, x, ...rest)
      }`)
    await page.goto(pathToFileURL(path).href)
    await page.waitForSelector('.chart canvas')
    const drawn = (await page.evaluate('drawn')) as { text: string; title: string; cut: boolean }[]
    const labels = (title: string) => [...new Set(drawn.filter((one) => one.title === title).map(({ text }) => text))]
    return { page, context, labels, cut: drawn.filter(({ cut }) => cut) }
  }

  const numbers = (i: number) => ({
    type: 'step',
    step: 60_000 * i,
    reward: i % 2 === 0 ? 1e308 : -1e308,
    entropy: 1.5 + i / 1000,
    kl: 0,
    loss: 2.5,
    learning_rate: 1e-5 * i,
    'completions/clipped_ratio': 0,
    frac_reward_null: 1,
    num_tokens: 3.2e12 * i,
    hard_tokens: 1_234_567 + i,
    skipped_updates: 999_999,
    tokens_per_second: 46_573.4,
  })

  it.each([390, 1280])('labels its axes in full at %i pixels, also for huge and tiny numbers', async (width) => {
    const many = Array.from({ length: 20 }, (_, i) => numbers(i + 1))
    const { page, context, labels, cut } = await showRuns({ numbers: many }, { viewport: { width, height: 900 } })
    expect(cut).toEqual([])
    expect(labels('Reward')).toEqual(expect.arrayContaining(['-1e308', '0', '1e308', '1M', 'step']))
    expect(labels('Tokens so far (tokens)')).toEqual(expect.arrayContaining(['20T', '40T', '60T']))
    expect(labels('Hard tokens (tokens)')).toEqual(expect.arrayContaining(['1,234,570', '1,234,580']))
    expect(labels('Learning rate')).toEqual(expect.arrayContaining(['1e-4', '2e-4']))
    // flat curves are a line of text
    expect(await page.locator('.constant').allTextContents()).toEqual([
      'Constant: frac_reward_null 1',
      'Constant: completions/clipped_ratio 0',
      'Constant: kl 0, loss 2.5',
      'Constant: tokens_per_second 46,573, skipped_updates 999,999',
    ])
    const rows = await page.locator('#summary-table tbody tr').allTextContents()
    expect(rows).toEqual(
      expect.arrayContaining([
        'reward1e308-1e3081e308',
        'num_tokens64T3.2T64T',
        'hard_tokens1.235M1.235M1.235M',
        'skipped_updates999,999999,999999,999',
        'tokens_per_second46,57346,57346,573',
        'learning_rate2e-41e-52e-4',
      ]),
    )
    expect(await page.locator('#summary-table td[title="1234587"]').count()).toBe(2)
    await context.close()
    expect(problems).toEqual([])
  })

  it('gives every run a distinct stroke, the same in head and all legends', async () => {
    const record = (i: number) => ({
      step: 1,
      reward: i,
      reward_std: i / 2,
      'eval/loop_1/reward': i,
      'eval/loop_2/reward': i,
      kl: i,
    })
    const names = Array.from({ length: 9 }, (_, i) => `addition-of-five-digits-with-the-exit-weights-${i}`)
    const runs = Object.fromEntries(names.map((name, i) => [name, [record(i + 0.5), { ...record(i), step: 2 }]]))
    const { page, context } = await showRuns(runs, { viewport: { width: 390, height: 900 }, bypassCSP: true })
    const strokes = (within: string) =>
      page.evaluate(`[...document.querySelectorAll('${within} .swatch line')].map((line) => [
        getComputedStyle(line).stroke, line.getAttribute('stroke-width'), line.getAttribute('stroke-dasharray')].join(' '))`)
    const head = (await strokes('#runs thead')) as string[]
    expect(new Set(head).size).toBe(names.length)
    const colours = head.slice(0, 8).map((stroke) => stroke.split(')')[0])
    expect(new Set(colours).size).toBe(8)
    expect(await strokes('.chart:has(#chart-kl-divergence)')).toEqual(head)
    const loops = (await strokes('.chart:has(#chart-accuracy-by-loops)')) as string[]
    expect(loops.slice(0, 9)).toEqual(head)
    expect(loops.slice(9).map((stroke) => stroke.replace(/[\d ]*$/, ''))).toEqual(
      head.map((stroke) => stroke.replace(/[\d ]*$/, '')),
    )
    expect(new Set(loops).size).toBe(18)

    const buttons = page.locator('.chart:has(#chart-kl-divergence) .legend button')
    expect(await buttons.nth(3).textContent()).toBe('addition…weights-3 3')
    expect(await buttons.nth(3).getAttribute('title')).toBe(names[3])
    const tallest =
      '[...document.querySelectorAll(".legend")].reduce((most, { clientHeight }) => Math.max(most, clientHeight), 0)'
    expect(await page.evaluate(tallest)).toBeLessThanOrEqual(220)
    expect(await violations(page)).toEqual([])
    await context.close()
    expect(problems).toEqual([])
  })

  it('shows results with intervals, values at the start, resumes and warnings', async () => {
    const path = join(root, 'whole')
    await mkdir(path, { recursive: true })
    const time = (second: number) => new Date(1e12 + 1000 * second).toISOString()
    const evaluation = (step: number, reward: number) => ({
      ...{ type: 'eval', step, time: time(step), 'eval/loop_1/reward': reward / 2, 'eval/loop_2/reward': reward },
      ...{ 'eval/loop_2/reward_low': reward / 2, 'eval/loop_2/reward_high': 2 * reward },
    })
    const steps = Array.from({ length: 60 }, (_, i) => ({
      ...step(i + 1),
      time: time(i + (i >= 30 ? 1000 : 0)),
      tokens_per_second: 10 + (i % 2),
    }))
    await writeFile(
      join(path, 'metrics.jsonl'),
      lines([
        evaluation(0, 0.2),
        ...steps.slice(0, 30),
        evaluation(30, 0.6),
        ...steps.slice(30),
        { ...evaluation(60, 0.5), time: time(1060) },
      ]),
    )
    const notes = [
      { type: 'begin', step: 0, time: time(0) },
      { type: 'warning', step: 3, time: time(3), message: 'careful <b>here</b>' },
      { type: 'resume', step: 30, time: time(1029) },
    ]
    await writeFile(join(path, 'notes.jsonl'), lines(notes))
    const facts = { parameters: 1000, trained: 40, device: 'cpu', dtype: 'float32', loops: 2, data: 'a dataset of 7 rows' }
    await writeFile(join(path, 'run.json'), JSON.stringify({ trainer: 'rltt', options: { steps: 60, beta: 0 }, ...facts }))
    const run = await new RunReader(path).read()
    expect(run).toMatchObject({ seconds: 30 + 31, steps: 60, trainer: 'rltt', facts: { trained: 40 } })
    expect(run.curves['eval/loop_2/reward']).toMatchObject({
      values: [0.2, 0.6, 0.5],
      low: [0.1, 0.3, 0.25],
      high: [0.4, 1.2, 1],
    })
    expect(Object.keys(run.curves)).not.toContain('eval/loop_2/reward_low')
    const file = join(root, 'whole.html')
    await writeReport([path, join(root, 'rltt')], file)
    for (const width of [360, 1400]) {
      const page = await show(pathToFileURL(file).href, { width, height: 900 })
      expect(await page.evaluate('document.documentElement.scrollWidth')).toBe(width)
      const box = page.locator('#runs .scroll')
      expect(await box.evaluate((node) => node.scrollHeight - node.clientHeight)).toBe(0) // nothing is cut below
      const rows = await page.locator('#runs tbody tr').allTextContents()
      expect(rows).toEqual([
        ...['trainerrlttrltt', 'step60 of 6030 of 30', 'reward, 1 loop0.250.25', 'reward, 2 loops0.5 (0.25 to 1)0.75'],
        ...['— at the start0.2 (0.1 to 0.4)–', '— best0.6 at step 300.75 at step 30', 'time1 min 1 s–', 'tokens/s10.5–'],
        ...[
          'parameters1,000, 40 trained–',
          'devicecpu, float32–',
          'dataa dataset of 7 rows–',
          'steps6030',
          'beta0–',
          'learningRate–1',
        ],
      ])
      expect(await page.locator('#notes tbody tr').allTextContents()).toEqual(['3wholecareful <b>here</b>', '30wholeresumed'])
    }
    expect(problems).toEqual([])
  })

  it('smooths long runs by default, and labels lines at their ends', async () => {
    const noisy = (i: number) => ({ type: 'step', step: i, reward: i % 2, reward_std: 0.5 + (i % 3), entropy: i })
    const { page, context, labels, cut } = await showRuns({ noisy: Array.from({ length: 60 }, (_, i) => noisy(i + 1)) })
    expect(await page.locator('#smoothing-value').textContent()).toBe('0.8')
    expect(labels('Reward')).toEqual(expect.arrayContaining(['reward', 'reward_std', '0', '60']))
    expect(cut).toEqual([])
    const chart = page.getByRole('slider', { name: 'Reward, values by step' })
    await chart.focus()
    await page.keyboard.press('Home')
    await page.keyboard.press('ArrowRight')
    expect(await chart.getAttribute('aria-valuetext')).toMatch(/^step 2, reward 0\.444/) // (0.8 × 1 + 0) / 1.8
    await page.locator('#smoothing').fill('0')
    await chart.focus()
    await page.keyboard.press('Home')
    expect(await chart.getAttribute('aria-valuetext')).toMatch(/^step 1, reward 1,/)
    await context.close()
    expect(problems).toEqual([])
  })

  it('supports runs without completions and a metric named constructor', async () => {
    const path = join(root, 'constructor', 'other')
    await mkdir(path, { recursive: true })
    await writeFile(join(path, 'metrics.jsonl'), lines([{ step: 1, reward: 1, constructor: 3 }]))
    await writeFile(join(path, 'config.yaml'), 'trainer: other\noptions: { steps: 1 }\nconstructor: 1\n')
    const [alone, both] = [join(root, 'alone.html'), join(root, 'both.html')]
    await writeReport([path], alone)
    await writeReport([path, join(root, 'rltt')], both)
    const page = await show(pathToFileURL(alone).href)
    expect(await page.locator('#runs tr').allTextContents()).toEqual(['other', 'trainerother', 'step1 of 1'])
    const [head, bar] = [await page.locator('#runs').boundingBox(), await page.locator('.bar').boundingBox()]
    expect(bar!.y - head!.y - head!.height).toBeLessThan(12) // nothing is kept free for a status that never comes
    expect(await page.locator('#sections a').allTextContents()).toEqual(['Reward', 'Others', 'All metrics', 'Configuration'])
    const compared = await show(pathToFileURL(both).href)
    expect(await compared.locator('#sections a').allTextContents()).toContain('Sample completions')
    expect(await compared.locator('#completion-groups h3').allTextContents()).toEqual(['other, none', 'rltt, step 30'])
    const rows = (table: string) => compared.locator(`${table} tr`, { hasText: 'constructor' }).allTextContents()
    expect(await rows('#summary-table')).toEqual(['constructor3–'])
    expect(await rows('#runs')).toEqual(['constructor1–'])
    expect(problems).toEqual([])
  })

  it('blocks an injected script, and the checks of these tests notice it', async () => {
    const path = join(root, 'broken.html')
    const html = reportPage(await reportData([new RunReader(join(root, 'rltt'))]))
    await writeFile(path, html.replace('</main>', '<script>document.title = "owned"</script></main>'))
    const page = await show(pathToFileURL(path).href)
    expect(problems.splice(0).join('\n')).toMatch(/Content Security Policy/) // and the script did not run
    expect(await page.title()).toBe('rltt – looplm')
  })
})
