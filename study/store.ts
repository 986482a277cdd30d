// The stored metrics: one JSON line per run, sorted by id, in one file per kind of run.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** The fields of every stored result. */
export interface Stored {
  id: string
  kind: string
}

/** All stored results by id. */
export function readResults<Result extends Stored>(folder: string): Map<string, Result> {
  const results = new Map<string, Result>()
  if (!existsSync(folder)) return results
  for (const name of readdirSync(folder).filter((file) => file.endsWith('.jsonl'))) {
    for (const line of readFileSync(join(folder, name), 'utf8').split('\n')) {
      if (line === '') continue
      const result = JSON.parse(line) as Result
      results.set(result.id, result)
    }
  }
  return results
}

/** Adds a result to its file. The file is replaced atomically, so that a killed study loses no finished run. */
export function storeResult(folder: string, result: Stored): void {
  mkdirSync(folder, { recursive: true })
  const name = `${result.kind}.jsonl`
  const path = join(folder, name)
  const others = [...readResults<Stored>(folder).values()].filter(({ kind, id }) => kind === result.kind && id !== result.id)
  const lines = [...others, result].sort((a, b) => (a.id < b.id ? -1 : 1)).map((entry) => JSON.stringify(entry))
  writeFileSync(`${path}.part`, `${lines.join('\n')}\n`)
  renameSync(`${path}.part`, path)
}
