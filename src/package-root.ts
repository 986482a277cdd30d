import { readFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { LoopLMError } from './errors.js'

/**
 * The folder of this package, which contains its native engine: two levels above dist/src, one above src. index.ts imports this
 * module first, so that a bundle, which has no such folder, fails with one clear error before any other module runs.
 *
 * @throws LoopLMError NATIVE_LOAD in a bundle
 */
export const packageRoot = findRoot(import.meta.url as string | undefined)

function findRoot(url: string | undefined): string {
  const file = url?.startsWith('file:') === true ? fileURLToPath(url) : undefined
  const folder = dirname(file ?? '')
  const root = basename(dirname(folder)) === 'dist' ? dirname(dirname(folder)) : dirname(folder)
  if (file !== undefined && basename(folder) === 'src' && packageName(root) === 'looplm') return root
  const message = [
    `looplm was bundled${file === undefined ? '' : ` into ${file}`}, where its native engine is missing. Mark looplm as external:`,
    "esbuild: --external:looplm, or external: ['looplm']",
    "Vite: ssr: { external: ['looplm'] }",
    "Rollup: external: ['looplm']",
    "webpack: externals: { looplm: 'module looplm' }, or 'commonjs looplm' for a CommonJS bundle",
    "Next.js: serverExternalPackages: ['looplm']",
    'Then install looplm where the bundle runs.',
  ]
  throw new LoopLMError('NATIVE_LOAD', message.join('\n  '), { operation: 'looplm' })
}

function packageName(folder: string): unknown {
  try {
    return (JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { name?: unknown }).name
  } catch {
    return undefined
  }
}

/** The version of this package. */
export function packageVersion(): string {
  return (JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string }).version
}
