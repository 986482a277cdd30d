export function prose(text: string): { line: number; text: string }[]
export function sentences(text: string): string[]
export function complaints(path: string, text: string): string[]
