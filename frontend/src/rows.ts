// Rows of a task as objects, what is shown of them, and how they are ordered and searched.
import type { Board, Num, Rows, Task, Width } from "./data";
import { count, number, signed, sparsityText, speedText, spread, times } from "./format";

export interface Row {
  place: number; label: string; tag: string; sparsity: Num; dense: boolean; collapsed: string;
  verified: string; mixed: string; rank: string; rankOrder: Num; ranked: boolean; seeds: string; achieved: Num;
  mean: (metric: string) => Num; width: (metric: string) => Width;
  inside: Num; insideWidth: Width; change: Num; changeWidth: Width; decided: boolean; unranked: string; masks: [string, string][];
  speed: { device: number; mean: Num; width: Num; remark: string; dense: Num; pruned: Num; runs: number; noise: Num } | undefined;
  speeds: Rows["speeds"][number];
  parameters: Num; macs: Num; ideal: Num; training: Num;
}

export function rowsOf(board: Board, rows: Rows, device: number): Row[] {
  return rows.method.map((method, place) => {
    const timed = rows.speeds[place].find((entry) => entry[0] === device);
    const dense = rows.dense[place] === 1;
    return {
      place, label: board.methods[method].label, ranked: board.methods[method].ranked,
      tag: sparsityText(rows.sparsity[place], dense),
      sparsity: rows.sparsity[place], dense, collapsed: rows.collapsed[place], verified: rows.verified[place],
      mixed: rows.mixed[place], rank: rows.rank[place][1], rankOrder: rows.rank[place][0], seeds: rows.seeds[place],
      achieved: rows.achieved[place],
      mean: (metric: string) => rows.metrics[metric]?.mean[place] ?? null,
      width: (metric: string) => rows.metrics[metric]?.width[place] ?? null,
      inside: rows.in_distribution.mean[place], insideWidth: rows.in_distribution.width[place],
      change: rows.change.mean[place], changeWidth: rows.change.width[place], decided: rows.decided[place] === 1,
      unranked: rows.unranked[place], masks: rows.masks[place] ?? [],
      speed: timed && { device: timed[0], mean: timed[1], width: timed[2], remark: timed[3], dense: timed[4], pruned: timed[5], runs: timed[6], noise: timed[7] },
      speeds: rows.speeds[place],
      parameters: rows.nonzero_parameters[place], macs: rows.nonzero_macs_share[place],
      ideal: rows.theoretical_speed_up[place], training: rows.training[place],
    };
  });
}

// The rows of one sparsity, with unpruned networks and those that chose their own.
export const atSparsity = (rows: Row[], tag: string): Row[] =>
  rows.filter((row) => row.tag === tag || row.dense || row.tag === "native" || row.sparsity === 0);

export interface ColumnSpec {
  key: string; title: string; help: string; text: (row: Row) => string; order: (row: Row) => number | string | null;
  better: "higher" | "lower"; numeric: boolean; essential?: boolean; faint?: (row: Row) => boolean; hint?: (row: Row) => string;
}

// The columns of the ranking, without those that at this sparsity say what another one says.
export function columnsOf(board: Board, task: Task, folded: string[]): ColumnSpec[] {
  const short = (name: string) => board.metrics.find((one) => one.name === name)?.short ?? name;
  const reference = task.reference === null ? "dense" : board.methods[task.reference].label;
  const metric = (name: string, title: string, better: "higher" | "lower"): ColumnSpec[] => {
    const found = board.metrics.find((one) => one.name === name);
    if (!found) return [];
    return [{
      key: name, title, help: `${found.title}${found.unit && `, ${found.unit}`}: ${found.help}`, better, numeric: true,
      text: (row) => spread(row.mean(name), row.width(name), found.decimals), order: (row) => row.mean(name),
    }];
  };
  const found = [
    { key: "rank", title: "Rank", help: "Places within this sparsity that the tests allow: 2-4 is second to fourth", better: "lower" as const,
      numeric: true, essential: true, text: (row: Row) => row.collapsed ? "collapsed" : row.rank || "–", order: (row: Row) => row.rankOrder,
      hint: (row: Row) => row.unranked && `No rank: ${row.unranked}` },
    ...metric(task.lead, `${short(task.lead)} ±`, "higher").map((column) => ({ ...column, essential: true })),
    { key: "change", title: `Change from ${reference}`, help: `${short(task.lead)} accuracy less that of ${reference}, paired by seed, percentage points; *: apart at a false discovery rate of 5 %`,
      better: "higher" as const, numeric: true, text: (row: Row) => `${signed(row.change, row.changeWidth, 1)}${row.decided ? " *" : ""}`, order: (row: Row) => row.change },
    ...(task.lead === "unbiased" ? [] : metric("unbiased", "Unbiased ±", "higher")),
    ...metric("bias_gap", "Gap ±", "lower"),
    ...metric("worst_tenth", "Worst tenth (CVaR) ±", "higher"),
    { key: "in_distribution", title: "In-distri\u00adbution ±", help: "Average accuracy, %, on validation images, which are biased like training's: what a network that has not collapsed reaches",
      better: "higher" as const, numeric: true, text: (row: Row) => spread(row.inside, row.insideWidth, 1), order: (row: Row) => row.inside },
    { key: "speed", title: "Speed ±", help: "Measured: latency dense / pruned within a run. n.s.: the interval holds 1, no measurable difference; busy: the machine was, it says little",
      better: "higher" as const, numeric: true, faint: (row: Row) => !row.speed || row.speed.remark !== "",
      text: (row: Row) => !row.speed ? "not measured" : speedText(row.speed.mean, row.speed.width, row.speed.remark), order: (row: Row) => row.speed?.mean ?? null },
    { key: "macs", title: "MACs left, %", help: "Multiply-accumulates with a non-zero weight, of all", better: "lower" as const, numeric: true,
      text: (row: Row) => number(row.macs === null ? null : 100 * row.macs, 1), order: (row: Row) => row.macs },
    { key: "training", title: "Training", help: `Training steps as a multiple of those of ${reference}`, better: "lower" as const, numeric: true,
      text: (row: Row) => times(row.training), order: (row: Row) => row.training },
  ];
  return found.filter((column) => column.key === task.lead || !folded.includes(column.key));
}

// Everything else that is known of a row, for its details.
export function detailsOf(board: Board, row: Row, shown: Set<string>): [string, string][] {
  const more = board.metrics.filter((metric) => !shown.has(metric.name) && row.mean(metric.name) !== null);
  return [
    ...more.map((metric): [string, string] => [
      `${metric.short}${metric.unit && `, ${metric.unit}`}`, spread(row.mean(metric.name), row.width(metric.name), metric.decimals),
    ]),
    ["Achieved sparsity", number(row.achieved, 4)],
    ["Non-zero parameters", count(row.parameters)],
    ["Theoretical speed-up", times(row.ideal)],
    ...(row.speed ? [["Latency dense, pruned", `${number(row.speed.dense, 2)}, ${number(row.speed.pruned, 2)} ms`] as [string, string]] : []),
    ...(row.speed?.noise ? [["Dense against itself", times(row.speed.noise)] as [string, string]] : []),
    ["Seeds finished", row.seeds],
    ...row.masks.filter(([, text]) => text !== "—"),
    ...(row.unranked ? [["No rank", row.unranked] as [string, string]] : []),
    ...(row.verified ? [["Verified", row.verified] as [string, string]] : []),
    ...(row.mixed ? [["Joins runs of", row.mixed] as [string, string]] : []),
  ];
}

// Pinned rows first, then by the column; rows without a value last in both directions.
export function sorted(rows: Row[], column: ColumnSpec | undefined, down: boolean, pinned: (row: Row) => boolean): Row[] {
  const key = column?.order;
  return [...rows].sort((a, b) => {
    if (pinned(a) !== pinned(b)) return Number(pinned(b)) - Number(pinned(a));
    if (!key) return 0;
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    const difference = x < y ? -1 : Number(x > y);
    return down ? -difference : difference;
  });
}

export const matches = (text: string, query: string): boolean =>
  query.trim().toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
