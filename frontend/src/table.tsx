// The ranking: one row a method with all that is asked of it, sorted by a click, with details below each row.
import { useState } from "preact/hooks";
import type { Board, Runs, Task } from "./data";
import { useChunk } from "./data";
import { hashOf, type State } from "./state";
import { detailsOf, type ColumnSpec, type Row } from "./rows";
import { number } from "./format";

export function Ranking(props: {
  board: Board; task: Task; rows: Row[]; columns: ColumnSpec[]; state: State; set: (change: Partial<State>) => void;
}) {
  const { board, task, rows, columns, state, set } = props;
  const [open, setOpen] = useState<ReadonlySet<number>>(new Set());
  const [sort, down] = [state.sort.replace(/^-/, ""), state.sort.startsWith("-")];
  const shown = new Set(columns.map((column) => column.key));
  const best = Math.max(0, ...rows.map((row) => row.mean(task.lead) ?? 0));
  const toggle = (place: number) => {
    const next = new Set(open);
    if (!next.delete(place)) next.add(place);
    setOpen(next);
  };
  const order = (column: ColumnSpec) => {
    const first = column.better === "higher" ? `-${column.key}` : column.key;
    set({ sort: state.sort === first ? (first.startsWith("-") ? column.key : `-${column.key}`) : first });
  };
  const pick = (label: string) =>
    set({ picked: state.picked.includes(label) ? state.picked.filter((one) => one !== label) : [...state.picked, label] });
  let band = "";
  let striped = false;
  return (
    <div class="scroll" id="ranking" tabIndex={0} role="region" aria-label={`Ranking, ${task.title}`}>
      <table class="ranking">
        <caption class="hidden">Methods on {task.title}: accuracy, bias, speed and cost</caption>
        <thead>
          <tr>
            <th scope="col" class="name">Method</th>
            {columns.map((column) => (
              <th key={column.key} scope="col" class={column.essential ? "number" : "number more"} title={column.help}
                aria-sort={sort === column.key ? (down ? "descending" : "ascending") : undefined}>
                <button type="button" onClick={() => order(column)}>
                  {column.title}<span class="arrow" aria-hidden="true">{sort === column.key ? (down ? "▼" : "▲") : "↕"}</span>
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => {
            if (row.rank && row.rank !== band) { band = row.rank; striped = !striped; }
            const looks = [row.dense ? "dense" : row.rank && striped ? "band" : "", row.collapsed ? "collapsed" : "", state.picked.includes(row.label) ? "picked" : ""];
            return (<>
              <tr key={`${row.label} ${row.tag}`} class={looks.filter(Boolean).join(" ")}>
                <th scope="row" class="name">
                  <span class="lead">
                    <button type="button" class="fold" aria-expanded={open.has(row.place)} aria-label={`Details of ${row.label}`} onClick={() => toggle(row.place)}>
                      {open.has(row.place) ? "−" : "+"}
                    </button>
                    <input type="checkbox" aria-label={`Show ${row.label} in the plots`} checked={state.picked.includes(row.label)} onChange={() => pick(row.label)} />
                    <a href={hashOf({ view: "method", slug: row.label })}><bdi>{row.label}</bdi></a>
                    {row.tag === "native" && <small title="It chose its sparsity itself"> {number(row.achieved, 2)} native</small>}
                    {row.verified && <small title={`Submitted; ${row.verified}`}> ✓</small>}
                  </span>
                </th>
                {columns.map((column) => (
                  <td key={column.key} title={column.hint?.(row) || undefined} class={`number${column.essential ? "" : " more"}${column.faint?.(row) ? " faint" : ""}`}>
                    {column.key === task.lead && row.mean(task.lead) !== null && best > 0 && (
                      <meter class="bar" aria-hidden="true" min={0} max={100} value={row.mean(task.lead) ?? 0} />
                    )}
                    {column.text(row)}
                  </td>
                ))}
              </tr>
              {open.has(row.place) && (
                <tr key={`${row.label} ${row.tag} details`} class="details">
                  <td colSpan={columns.length + 1}><Details board={board} task={task} row={row} columns={columns} shown={shown} /></td>
                </tr>
              )}
            </>);
          })}
        </tbody>
      </table>
    </div>
  );
}

function Details(props: { board: Board; task: Task; row: Row; columns: ColumnSpec[]; shown: Set<string> }) {
  const { board, task, row } = props;
  return (
    <div class="sheet">
      <dl>
        {props.columns.filter((column) => !column.essential).map((column) => (
          <div key={column.key} class="narrow"><dt>{column.title}</dt><dd>{column.text(row)}</dd></div>
        ))}
        {detailsOf(board, row, props.shown).map(([term, text]) => <div key={term}><dt>{term}</dt><dd>{text}</dd></div>)}
      </dl>
      <p><a href={hashOf({ view: "method", slug: row.label })}>Card of <bdi>{row.label}</bdi></a></p>
      <RunList board={board} task={task} row={row} />
    </div>
  );
}

// The command that makes a row again.
export function command(task: Task, method: string, sparsity: number | null, dense: boolean): string {
  const quoted = (text: string) => (/^[\w@./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  return `prunebench reproduce ${quoted(`${task.task}/${method}/${dense ? 0 : sparsity ?? "native"}`)}`;
}

export function RunList(props: { board: Board; task: Task; row: Row }) {
  const { task, row } = props;
  const runs = useChunk<Runs>(`${task.slug}-runs`);
  if (!runs) return <p class="faint">Loading runs …</p>;
  const of = (run: (string | number | null)[], name: string) => run[runs.facts.indexOf(name)];
  return (<>
    <table class="small">
      <caption>Runs of this row</caption>
      <thead><tr><th scope="col">Seed</th><th scope="col">Run</th><th scope="col">Status</th><th scope="col">Conflicting, %</th><th scope="col">Unbiased, %</th><th scope="col">Seconds</th><th scope="col">Commit</th></tr></thead>
      <tbody>
        {runs.runs[row.place].map((run) => (
          <tr key={of(run, "id")}>
            <td>{of(run, "seed")}</td><td><code>{String(of(run, "id")).slice(0, 12)}</code></td>
            <td>{of(run, "status")}{of(run, "reason") && <>: <bdi>{of(run, "reason")}</bdi></>}</td>
            <td>{number(of(run, "conflicting") as number | null, 1)}</td><td>{number(of(run, "unbiased") as number | null, 1)}</td><td>{number(of(run, "seconds") as number | null, 0)}</td><td><code>{of(run, "commit")}</code></td>
          </tr>
        ))}
      </tbody>
    </table>
    <p>A run's record: <code>prunebench show RUN</code>. Make the row again: <code>{command(task, props.board.methods.find((one) => one.label === row.label)?.name ?? row.label, row.sparsity, row.dense)}</code></p>
  </>);
}
