// Opens the pages of docs/site in Chromium, light and dark, wide and as narrow as a phone: axe must find nothing wrong, no page
// may be wider than its window, and no link within the site may lead nowhere. Run `npm run docs` before.
import { existsSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import axe from 'axe-core'
import { chromium } from 'playwright-core'

const site = fileURLToPath(new URL('../docs/site/', import.meta.url))
if (!existsSync(site)) {
  console.error('docs/site is missing: npm run docs')
  process.exit(1)
}
const all = readdirSync(site, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.html'))
// All documents, and two of every other kind: TypeDoc writes the rest alike.
const pages = all.filter((name) => {
  const kind = dirname(name)
  return kind === '.' || kind === 'documents' || all.filter((other) => dirname(other) === kind).indexOf(name) < 2
})
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-dev-shm-usage'],
})
const problems = []
const links = `[...document.querySelectorAll('a[href]')].map(({ href }) => href).filter((href) => href.startsWith('file:'))`
const violations = `axe.run().then(({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes[0].html.slice(0, 100)))`
for (const [colorScheme, width] of [
  ['light', 1280],
  ['dark', 360],
]) {
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme })
  for (const name of pages) {
    const say = (what) => problems.push(`${name} (${colorScheme}, ${width}): ${what}`)
    await page.goto(pathToFileURL(join(site, name)).href)
    await page.waitForFunction(`document.body.style.display !== 'none'`)
    await page.evaluate(axe.source)
    for (const found of await page.evaluate(violations)) say(found)
    if (await page.evaluate('document.documentElement.scrollWidth > innerWidth')) say('is wider than its window')
    for (const link of await page.evaluate(links)) {
      const path = fileURLToPath(link.replace(/[?#].*$/, ''))
      if (!existsSync(path)) say(`a link leads nowhere: ${link}`)
    }
  }
}
await browser.close()
for (const problem of problems) console.error(problem)
console.log(`${pages.length} pages, ${problems.length} problems`)
process.exitCode = problems.length > 0 ? 1 : 0
