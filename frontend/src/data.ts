// Values of the board, and the chunks that hold them: scripts that call `pruneBenchData`.
import { useEffect, useState } from "preact/hooks";

export type Num = number | null;

// The half-width of an interval, or both its ends where it is cut at what is possible.
export type Width = Num | [Num, Num];

export interface Intervals { mean: Num[]; width: Width[] }

// Speed-up, half-width, remark (n.s. or busy), latency dense and pruned (ms), runs, dense against itself.
export type Speed = [Num, Num, string, Num, Num, number, Num];

export interface Metric {
  name: string; title: string; short: string; unit: string; decimals: number;
  better: "higher" | "lower" | "zero" | null; help: string; attributes: boolean;
}

export interface Answer {
  sparsity: number; method: number; words: string; rank: string; mean: Num; width: Num; before: string; gap: Num;
  speed: Speed | null; training: Num; faster: number[];
}

export interface Task {
  slug: string; title: string; task: string; version: number; data: string; model: string;
  recipe: [string, string][]; seeds: number[]; sparsities: number[]; shown: Num; devices: string[];
  differs: string | null; notes: string[]; remarks: string[]; problems: string[]; lead: string; reference: Num; summary: string | null;
  analysis: string | null; hypotheses: Hypothesis[]; answers: Answer[];
  cells: Intervals & { method: number[]; place: number[]; rank: string[]; collapsed: number[]; training: Num[] };
}

export interface Hypothesis { title: string; outcome: string; reason: string; facts: [string, string][] }

export interface Method {
  label: string; name: string; cite: string; supervision: string; version: string;
  settings: [string, string][]; ranked: boolean; paper: { doi: string; bibtex: string } | null;
}

export interface TextTable { title: string; columns: { title: string; numeric: boolean }[]; rows: string[][] }

export interface Board {
  introduction: string; facts: string; reading: [string, string][];
  metrics: Metric[]; tasks: Task[]; methods: Method[]; hypotheses: Hypothesis[];
  environments: [string, number][]; commits: [string, number][]; history: string[];
  changes: { words: string; tables: TextTable[] } | null;
}

export interface Rows {
  method: number[]; sparsity: Num[]; dense: number[]; achieved: Num[]; seeds: string[]; verified: string[];
  mixed: string[]; collapsed: string[]; unranked: string[]; rank: [Num, string][]; metrics: Record<string, Intervals>;
  in_distribution: Intervals; change: Intervals; decided: number[]; folded: Record<string, string[]>; masks: Record<string, [string, string][]>;
  speeds: [number, ...Speed][][];
  nonzero_parameters: Num[]; nonzero_macs_share: Num[]; theoretical_speed_up: Num[]; training: Num[];
}

export interface Groups { maps: Record<string, Num[][]>; aligned: number[][] }

export interface Runs { facts: string[]; runs: (string | Num)[][][] }

declare global {
  interface Window { pruneBenchData: (key: string, value: unknown) => void }
}

const held = new Map<string, unknown>();
const waiting = new Map<string, ((value: unknown) => void)[]>();

window.pruneBenchData = (key, value) => {
  held.set(key, value);
  waiting.get(key)?.forEach((take) => take(value));
  waiting.delete(key);
};

export function whenLoaded<T>(key: string, take: (value: T) => void): void {
  if (held.has(key)) return take(held.get(key) as T);
  const queue = waiting.get(key);
  if (queue) { queue.push(take as (value: unknown) => void); return; }
  waiting.set(key, [take as (value: unknown) => void]);
  if (key === "board") return;  // its script stands in the page
  const script = document.createElement("script");
  script.src = `data/${key}.js`;
  script.onerror = () => waiting.delete(key);
  document.head.append(script);
}

// A chunk, once it is there; it is asked for when a view that shows it is drawn.
export function useChunk<T>(key: string): T | undefined {
  const [value, set] = useState<{ key: string; value: T } | undefined>(
    held.has(key) ? { key, value: held.get(key) as T } : undefined,
  );
  useEffect(() => {
    let wanted = true;
    whenLoaded<T>(key, (found) => { if (wanted) set({ key, value: found }); });
    return () => { wanted = false; };
  }, [key]);
  return value?.key === key ? value.value : held.has(key) ? (held.get(key) as T) : undefined;
}

export const metricOf = (board: Board, name: string): Metric | undefined =>
  board.metrics.find((metric) => metric.name === name);
