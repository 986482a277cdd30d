// Checkpoint folders with damage, and folders without checksums, as other tools and earlier versions write them.
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

const mask = (1n << 64n) - 1n
const [p1, p2, p3, p4, p5] = [
  0x9e3779b185ebca87n,
  0xc2b2ae3d27d4eb4fn,
  0x165667b19e3779f9n,
  0x85ebca77c2b2ae63n,
  0x27d4eb2f165667c5n,
] as const

/** XXH64 with seed 0, written from its specification: 16 digits. */
export function xxh64(bytes: Buffer): string {
  const rotate = (x: bigint, by: bigint) => ((x << by) | (x >> (64n - by))) & mask
  const round = (lane: bigint, word: bigint) => (rotate((lane + word * p2) & mask, 31n) * p1) & mask
  let at = 0
  let hash: bigint = p5
  if (bytes.length >= 32) {
    const lanes = [(p1 + p2) & mask, p2, 0n, -p1 & mask]
    for (; at + 32 <= bytes.length; at += 32)
      for (const [i, lane] of lanes.entries()) lanes[i] = round(lane, bytes.readBigUInt64LE(at + 8 * i))
    hash = [1n, 7n, 12n, 18n].reduce((sum, by, i) => (sum + rotate(lanes[i]!, by)) & mask, 0n)
    for (const lane of lanes) hash = ((hash ^ round(0n, lane)) * p1 + p4) & mask
  }
  hash = (hash + BigInt(bytes.length)) & mask
  for (; at + 8 <= bytes.length; at += 8) hash = (rotate(hash ^ round(0n, bytes.readBigUInt64LE(at)), 27n) * p1 + p4) & mask
  if (at + 4 <= bytes.length) {
    hash = (rotate(hash ^ ((BigInt(bytes.readUInt32LE(at)) * p1) & mask), 23n) * p2 + p3) & mask
    at += 4
  }
  for (; at < bytes.length; at++) hash = (rotate(hash ^ ((BigInt(bytes[at]!) * p5) & mask), 11n) * p1) & mask
  hash = ((hash ^ (hash >> 33n)) * p2) & mask
  hash = ((hash ^ (hash >> 29n)) * p3) & mask
  return (hash ^ (hash >> 32n)).toString(16).padStart(16, '0')
}
