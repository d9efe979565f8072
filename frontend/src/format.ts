// Numbers as the tables of the Markdown write them; rounding was done where the data were made.
import type { Num, Width } from "./data";

export const MISSING = "\u2014";

export function number(value: Num | undefined, decimals: number): string {
  if (value === null || value === undefined) return MISSING;
  return value.toFixed(decimals).replace("-", "\u2212");
}

export function spread(mean: Num | undefined, width: Width | undefined, decimals: number): string {
  if (mean === null || mean === undefined) return MISSING;
  if (Array.isArray(width)) return `${number(mean, decimals)} [${width.map((end) => number(end, decimals)).join(", ")}]`;
  return `${number(mean, decimals)} ± ${width === null || width === undefined ? "\u2013" : number(width, decimals)}`;
}

export function signed(mean: Num, width: Width, decimals: number): string {
  const text = spread(mean, width, decimals);
  return mean !== null && mean > 0 ? `+${text}` : text;
}

export const times = (value: Num | undefined, decimals = 2): string =>
  value === null || value === undefined ? MISSING : `${number(value, decimals)}×`;

export const speedText = (mean: Num, width: Num, remark: string): string => `${spread(mean, width, 2)} ${remark}`.trimEnd();

export const count = (value: Num): string => (value === null ? MISSING : Math.round(value).toLocaleString("en-US"));

export const sparsityText = (sparsity: Num, dense: boolean): string =>
  dense ? "dense" : sparsity === null ? "native" : String(sparsity);
