// A method's card, what changed since another board, and how to read all of it.
import type { Board, Method, Num, Task, TextTable, Width } from "./data";
import { number, spread, times } from "./format";
import { Figure, Curves, type Curve } from "./plots";
import { saveText } from "./save";
import { hashOf } from "./state";
import { command } from "./table";
import { MethodList, Origins } from "./task";

interface Result { task: Task; sparsity: Num; tag: string; mean: Num; width: Width; rank: string; collapsed: boolean; training: Num }

function resultsOf(board: Board, place: number): Result[] {
  return board.tasks.flatMap((task) => task.cells.method.flatMap((method, row) => {
    if (method !== place) return [];
    const at = task.cells.place[row];
    return [{
      task, sparsity: at >= 0 ? task.sparsities[at] : null, tag: at >= 0 ? String(task.sparsities[at]) : at === -1 ? "dense" : "native", mean: task.cells.mean[row],
      width: task.cells.width[row], rank: task.cells.rank[row], collapsed: task.cells.collapsed[row] === 1, training: task.cells.training[row],
    }];
  }));
}

export function MethodPage(props: { board: Board; label: string }) {
  const { board, label } = props;
  const place = board.methods.findIndex((method) => method.label === label);
  if (place < 0) return <p class="answer">The board has no method <bdi>{label}</bdi>. <a href="#/about">All methods</a>.</p>;
  const method = board.methods[place];
  const results = resultsOf(board, place);
  const tasks = board.tasks.filter((task) => results.some((one) => one.task === task));
  return (<>
    <h2><bdi>{label}</bdi></h2>
    <Facts method={method} training={results.map((one) => one.training).filter((one): one is number => one !== null)} />
    <h3>Results</h3>
    <div class="figures small">{tasks.map((task) => <Spark key={task.slug} board={board} task={task} results={results.filter((one) => one.task === task)} label={label} />)}</div>
    <div class="scroll" tabIndex={0} role="region" aria-label={`Results of ${label}`}>
      <table class="plain">
        <thead><tr>{["Task", "Sparsity", "Minorities ±, %", "Rank", "Training", "Make it again"].map((head) => <th key={head} scope="col">{head}</th>)}</tr></thead>
        <tbody>{results.map((one) => (
          <tr key={`${one.task.slug} ${one.tag}`} class={one.collapsed ? "collapsed" : ""}>
            <th scope="row"><a href={hashOf({ view: "task", slug: one.task.slug, sparsity: one.sparsity === null ? "" : one.tag, picked: [label] })}><bdi>{one.task.title}</bdi></a></th>
            <td>{one.tag}</td><td>{spread(one.mean, one.width, 1)}</td><td>{one.collapsed ? "collapsed" : one.rank || "–"}</td><td>{times(one.training)}</td>
            <td class="words"><code>{command(one.task, method.name, one.sparsity, one.tag === "dense")}</code></td>
          </tr>
        ))}</tbody>
      </table>
    </div>
  </>);
}

function Facts(props: { method: Method; training: number[] }) {
  const { method, training } = props;
  const [low, high] = [Math.min(...training), Math.max(...training)];
  const cost = !training.length ? "not known" : low === high ? times(low) : `${times(low)} to ${times(high)}`;
  return (<>
    <dl class="facts">
      <div><dt>Source</dt><dd><bdi>{method.cite}</bdi>{method.paper && <> <a href={`https://doi.org/${method.paper.doi}`} rel="noreferrer">doi:{method.paper.doi}</a></>}</dd></div>
      <div><dt>What it may know of the bias</dt><dd>{method.supervision || "nothing"}</dd></div>
      <div><dt>Training, dense = 1×</dt><dd>{cost}</dd></div>
      <div><dt>Version</dt><dd><bdi>{method.version}</bdi></dd></div>
      <div><dt>Ranked</dt><dd>{method.ranked ? "yes" : "no: a reference, or it needs more than the pruned network"}</dd></div>
      <div><dt>Settings</dt><dd>{method.settings.length ? method.settings.map(([name, value]) => `${name} = ${value}`).join("; ") : "none"}</dd></div>
    </dl>
    {method.paper?.bibtex && (
      <details><summary>BibTeX</summary><pre tabIndex={0}>{method.paper.bibtex}</pre>
        <button type="button" onClick={() => saveText(`${method.paper?.bibtex}\n`, `${method.name}.bib`, "text/plain")}>Save</button></details>
    )}
  </>);
}

const place = (sparsity: number) => -Math.log10(Math.max(1e-4, 1 - sparsity));

function Spark(props: { board: Board; task: Task; results: Result[]; label: string }) {
  const { board, task, label } = props;
  const points = props.results.filter((one) => one.sparsity !== null).map((one) => ({ x: place(one.sparsity as number), y: one.mean, hint: `${one.tag}: ${spread(one.mean, one.width, 1)}` }));
  if (points.length < 2) return null;
  const curves: Curve[] = [{ label, points: points.sort((a, b) => a.x - b.x), lead: 0 }];
  const base = task.reference === null ? -1 : task.cells.method.findIndex((method, row) => method === task.reference && task.cells.place[row] === -1);
  const value = base < 0 ? null : task.cells.mean[base];
  return <Figure title={task.title} name={`${label}-${task.slug}`} caption="" ratio={0.55}
    draw={(frame) => <Curves {...frame} curves={curves} ticks={task.sparsities.map((one) => [place(one), number(one, 2)])} y="%"
      reference={value === null ? undefined : { label: board.methods[task.reference as number].label, value }} />} />;
}

export function About(props: { board: Board }) {
  const { board } = props;
  return (<>
    <h2>How to read this</h2>
    <dl class="terms">{board.reading.map(([term, text]) => <div key={term}><dt>{term}</dt><dd>{text}</dd></div>)}</dl>
    <dl class="terms">{board.metrics.map((metric) => <div key={metric.name}><dt>{metric.title}{metric.unit && `, ${metric.unit}`}</dt><dd>{metric.help}.</dd></div>)}</dl>
    <h2>Methods</h2>
    <MethodList board={board} labels={board.methods.map((method) => method.label)} />
    <h2>Provenance</h2>
    <Origins board={board} />
  </>);
}

export function Changes(props: { board: Board }) {
  const { changes } = props.board;
  if (!changes) return <p class="answer">This board was written without another one to compare with: <code>prunebench leaderboard --diff RESULTS</code>.</p>;
  return (<><h2>What changed</h2><p class="answer">{changes.words}</p>{changes.tables.map((table) => <TextTableView key={table.title} table={table} />)}</>);
}

function TextTableView(props: { table: TextTable }) {
  const { table } = props;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={table.title}>
      <table class="plain"><caption>{table.title}</caption>
        <thead><tr>{table.columns.map((column) => <th key={column.title} scope="col">{column.title}</th>)}</tr></thead>
        <tbody>{table.rows.map((row, place) => <tr key={place}>{row.map((text, at) => <td key={at} class={table.columns[at].numeric ? "" : "words"}><bdi>{text}</bdi></td>)}</tr>)}</tbody></table>
    </div>
  );
}
