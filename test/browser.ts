import { existsSync } from 'node:fs'
import { type Browser, chromium } from 'playwright-core'

const places = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']

/** The browser of this machine; CHROMIUM names another. */
export const browserPath = [process.env.CHROMIUM, ...places].find((path) => path !== undefined && existsSync(path))

/** Why tests in a browser are left out, or undefined. */
export const noBrowser = browserPath === undefined ? 'no Chromium on this machine (apt-get install -y chromium)' : undefined
if (noBrowser !== undefined) console.log(`skipped: tests of pages in a browser; ${noBrowser}`)

/** A headless browser that asks nothing of the network by itself. */
export function openBrowser(): Promise<Browser> {
  const quiet = [
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ]
  return chromium.launch({ executablePath: browserPath!, args: ['--no-sandbox', '--disable-quic', ...quiet] })
}
