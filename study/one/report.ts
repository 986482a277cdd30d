// The tables and figures of docs/study.md, computed only from the stored metrics.
import { writePage } from '../document.js'
import type { Results } from './comparisons.js'
import { figures } from './figures.js'
import { tables } from './tables.js'

/** Writes the page. Returns the written paths, relative to `root`. */
export const writeReport = (root: string, results: Results): string[] =>
  writePage(root, 'study', tables(results), figures(results))
