// The tables, verdicts and figures of docs/study-2.md, computed only from the stored results.
import { writePage } from '../document.js'
import type { Results as TextResults } from '../text/tables.js'
import type { Results } from './comparisons.js'
import { figures } from './figures.js'
import { tables } from './tables.js'

/** Writes the page. Returns the written paths, relative to `root`. */
export const writeReport = (root: string, results: Results, ofText: TextResults): string[] =>
  writePage(root, 'study-2', tables(results, ofText), figures(results))
