// Checkpoint folders with damage, and folders without checksums, as other tools and version 0.1.0 wrote them.
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** Takes the checksums out of a folder's files, whose sizes stay. */
export async function withoutChecksums(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const path = join(folder, name)
    if (name.endsWith('.safetensors')) {
      const bytes = await readFile(path)
      const header = bytes.toString('latin1', 0, 8 + Number(bytes.readBigUInt64LE(0)))
      bytes.write(header.replaceAll('"looplm.', '"others.'), 'latin1')
      await writeFile(path, bytes)
    } else if (name === 'trainer_state.json') {
      const { files: _, checksum: __, ...state } = JSON.parse(await readFile(path, 'utf8'))
      await writeFile(path, JSON.stringify({ ...state, format: 1 }))
    }
  }
}
