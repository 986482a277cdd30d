// The text: documents of the packages that this repository installs, under free licences. Nothing of it is in the repository.
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { settings } from './plan.js'

const free = ['MIT', 'Apache-2.0', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause']

/** Blocks of bytes, and a fingerprint of all of them. */
export interface Text {
  training: number[][]
  heldOut: number[][]
  fingerprint: string
}

/** Folders of installed packages, those of organisations too. */
function packages(folder: string): string[] {
  const names = readdirSync(folder)
    .filter((name) => !name.startsWith('.'))
    .sort()
  return names.flatMap((name) => (name.startsWith('@') ? packages(join(folder, name)) : [join(folder, name)]))
}

/** @param folder node_modules */
export function readText(folder: string): Text {
  const documents = new Set<string>()
  for (const path of packages(folder)) {
    if (!existsSync(join(path, 'package.json'))) continue
    const { license, os } = JSON.parse(readFileSync(join(path, 'package.json'), 'utf8')) as { license?: unknown; os?: unknown }
    if (os !== undefined || !free.includes(String(license))) continue // what every machine installs
    for (const name of readdirSync(path)
      .filter((file) => /^(readme|changelog|history).*\.md$/i.test(file))
      .sort())
      documents.add(readFileSync(join(path, name), 'latin1'))
  }
  const bytes = Buffer.from([...documents].join('\n'), 'latin1')
  const { contextLength, heldOutEvery } = settings
  const blocks = Array.from({ length: Math.floor(bytes.length / contextLength) }, (_, i) => [
    ...bytes.subarray(i * contextLength, (i + 1) * contextLength),
  ])
  return {
    training: blocks.filter((_, i) => i % heldOutEvery !== 0),
    heldOut: blocks.filter((_, i) => i % heldOutEvery === 0),
    fingerprint: createHash('sha256').update(bytes).digest('hex').slice(0, 12),
  }
}
