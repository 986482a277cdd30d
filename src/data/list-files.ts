import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError } from '../errors.js'
import { onDisk } from '../files/write.js'

/**
 * The files of a folder, recursively, in the order of their paths. Links to files are followed, links to folders are not,
 * because they could form a cycle.
 *
 * @param wanted filters by path
 * @throws LoopLMError NOT_FOUND, INVALID_FILE
 */
export async function listFiles(folder: string, wanted: (path: string) => boolean, operation: string): Promise<string[]> {
  const found: string[] = []
  const entries = await onDisk('read', folder, readdir(folder, { recursive: true, withFileTypes: true }), operation)
  for (const entry of entries) {
    const path = join(entry.parentPath, entry.name)
    if (!wanted(path)) continue
    if (entry.isFile() || (entry.isSymbolicLink() && (await leadsToFile(path, operation)))) found.push(path)
  }
  return found.sort()
}

async function leadsToFile(link: string, operation: string): Promise<boolean> {
  try {
    return (await stat(link)).isFile()
  } catch (cause) {
    throw fileError(cause, 'read', link, operation)
  }
}
