// The landing page: the answer for each task, and the matrix of methods x tasks at one sparsity.
import { Component } from "preact";
import { useMemo } from "preact/hooks";
import type { Board, Num, Task, Width } from "./data";
import { number, speedText, spread, times } from "./format";
import { Figure, heightOf, Strips, type Strip } from "./plots";
import { matches } from "./rows";
import { csv, saveText } from "./save";
import { hashOf, type State } from "./state";

const MOST_STRIPS = 12;

interface Cell { mean: Num; width: Width; rank: string; collapsed: boolean }

export function Home(props: { board: Board; state: State; set: (change: Partial<State>) => void }) {
  const { board, state, set } = props;
  const sparsities = useMemo(() => [...new Set(board.tasks.flatMap((task) => task.sparsities))].sort((a, b) => a - b).map(String), [board]);
  const usual = sparsities.includes("0.9") ? "0.9" : sparsities[Math.floor(sparsities.length / 2)] ?? "";
  const tag = state.sparsity || usual;
  const found = board.tasks.filter((task) => matches(task.title, state.query));
  const tasks = found.length ? found : board.tasks;
  if (!board.tasks.length) return <p class="answer">{board.facts}</p>;
  return (<>
    <p class="lead">{board.introduction}</p>
    <div class="choosers">
      <label>Sparsity <select value={tag} onChange={(event) => set({ sparsity: event.currentTarget.value })}>
        {sparsities.map((one) => <option key={one}>{one}</option>)}
      </select></label>
      <label class="search">Find tasks or methods <input type="search" value={state.query} onInput={(event) => set({ query: event.currentTarget.value })} /></label>
    </div>
    <div class="opening">
      <section>
        <h2 id="answers">Best method, its bias and its speed</h2>
        <Answers board={board} tasks={tasks} tag={tag} />
      </section>
      <Glance board={board} tasks={tasks.slice(0, MOST_STRIPS)} tag={tag} />
    </div>
    <Matrix board={board} tag={tag} query={state.query} />
    <p class="note">{board.facts}</p>
  </>);
}

function Answers(props: { board: Board; tasks: Task[]; tag: string }) {
  const { board, tasks, tag } = props;
  return (
    <div class="scroll tall" tabIndex={0} role="region" aria-labelledby="answers">
      <table class="answers">
        <thead><tr><th scope="col" class="name">Task</th><th scope="col" class="words">Best method</th><th scope="col">Minorities ±, %</th>
          <th scope="col" class="more">Unpruned, %</th><th scope="col">Gap</th><th scope="col">Speed ±</th><th scope="col" class="more">Training</th></tr></thead>
        <tbody>{tasks.map((task) => {
          const answer = task.answers.find((one) => String(one.sparsity) === tag);
          const name = <th scope="row" class="name"><a href={hashOf({ view: "task", slug: task.slug, sparsity: answer ? tag : "" })}><bdi>{task.title}</bdi></a></th>;
          if (!answer) return <tr key={task.slug}>{name}<td class="words faint" colSpan={6}>no ranked method with all its seeds at {tag}</td></tr>;
          const label = board.methods[answer.method].label;
          return (
            <tr key={task.slug} title={answer.words}>{name}
              <td class="words"><a href={hashOf({ view: "method", slug: label })}><bdi>{label}</bdi></a><small class="faint"> {answer.rank ? `rank ${answer.rank}` : "not ranked"}</small></td>
              <td>{spread(answer.mean, answer.width, 1)}</td><td class="more">{answer.before}</td><td>{number(answer.gap, 1)}</td>
              <td class={answer.speed && !answer.speed[2] ? "" : "faint"}>{answer.speed ? speedText(answer.speed[0], answer.speed[1], answer.speed[2]) : "not measured"}</td>
              <td class="more">{times(answer.training)}</td></tr>
          );
        })}</tbody>
      </table>
    </div>
  );
}

// How far the methods of a task are apart, and where its unpruned reference stands.
function Glance(props: { board: Board; tasks: Task[]; tag: string }) {
  const { board, tasks, tag } = props;
  const strips = useMemo(() => tasks.map((task): Strip => {
    const [place, cells] = [task.sparsities.map(String).indexOf(tag), task.cells];
    const answer = task.answers.find((one) => String(one.sparsity) === tag);
    const base = cells.method.findIndex((method, row) => method === task.reference && cells.place[row] === -1);
    return {
      title: task.title, reference: base < 0 ? null : cells.mean[base],
      best: answer && answer.mean !== null ? { label: board.methods[answer.method].label, x: answer.mean } : null,
      spots: cells.method.flatMap((method, row) => {
        const x = cells.mean[row];
        if (place < 0 || cells.place[row] !== place || x === null) return [];
        const { label } = board.methods[method];
        return [{ label, x, hollow: cells.collapsed[row] === 1, hint: `${label} ${spread(x, cells.width[row], 1)} %` }];
      }),
    };
  }).filter((strip) => strip.spots.length > 0), [board, tasks.map((task) => task.slug).join(), tag]);
  if (!strips.length) return null;
  return <Figure title={`All methods at sparsity ${tag}`} name={`methods-${tag}`} height={heightOf(strips)}
    caption={`A dot a method, hollow: collapsed; square: the unpruned reference; named: the best.${board.tasks.length > MOST_STRIPS && tasks.length === MOST_STRIPS ? ` ${MOST_STRIPS} tasks; type to see others.` : ""}`}
    draw={(frame) => <Strips {...frame} strips={strips} x="Accuracy of the minorities, %" label="Accuracy of the minorities by task and method; the tables have the same numbers." />} />;
}

function Matrix(props: { board: Board; tag: string; query: string }) {
  const { board, tag, query } = props;
  const cells = useMemo(() => board.tasks.map((task) => {
    const place = task.sparsities.map(String).indexOf(tag);
    const found = new Map<number, Cell>();
    task.cells.method.forEach((method, row) => {
      const at = task.cells.place[row];
      if (at !== place && at !== -1 && !(at === -2 && place >= 0)) return;
      found.set(method, { mean: task.cells.mean[row], width: task.cells.width[row], rank: task.cells.rank[row], collapsed: task.cells.collapsed[row] === 1 });
    });
    return found;
  }), [board, tag]);
  const tops = useMemo(() => cells.map((found) => Math.max(...[...found.values()].filter((cell) => cell.rank && !cell.collapsed).map((cell) => cell.mean ?? 0))), [cells]);
  const lines = useMemo(() => board.methods.map((method, place) => {
    const own = cells.map((found) => found.get(place));
    const known = own.filter((cell) => cell && cell.mean !== null);
    const places = own.map((cell, task) => (cell && cell.mean !== null ? 1 + [...cells[task].values()].filter((one) => (one.mean ?? -1) > (cell.mean as number)).length : null));
    const mean = known.length === board.tasks.length ? places.reduce<number>((sum, one) => sum + (one as number), 0) / places.length : null;
    return { method, own, known: known.length, mean };
  }).filter((line) => line.known > 0).sort((a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity) || b.known - a.known || (a.method.label < b.method.label ? -1 : 1)), [cells]);
  const tasks = useMemo(() => board.tasks.map((task, place) => ({ task, place })), [board]);
  const chosen = tasks.filter(({ task }) => matches(task.title, query));
  const methods = lines.filter((line) => matches(line.method.label, query));
  const wanted = chosen.length && chosen.length < tasks.length ? chosen : tasks;
  const across = useMemo(() => wanted, [wanted.map(({ place }) => place).join()]);
  const down = methods.length ? methods : lines;
  const shown = new Set(down);
  const save = () => saveText(csv(["method", ...across.map(({ task }) => task.title)],
    down.map((line) => [line.method.label, ...across.map(({ place }) => line.own[place]?.mean ?? null)])), `matrix-${tag}.csv`, "text/csv");
  return (<>
    <div class="tools"><h2>Methods by tasks</h2><button type="button" onClick={save} aria-label="CSV of methods by tasks">CSV</button></div>
    <p class="note">Accuracy of the minorities (bias-conflicting groups; of tasks without them, over all groups), % at sparsity {tag}, mean over seeds. Bold: the highest of a ranked method. In brackets: collapsed. Methods by their mean place; those that some task lacks come last.</p>
    <div class="scroll" tabIndex={0} role="region" aria-label="Methods by tasks">
      <table class="matrix">
        <caption class="hidden">Accuracy of the minorities by method and task</caption>
        <thead><tr><th scope="col" class="name">Method</th>
          {across.map(({ task }) => <th key={task.slug} scope="col"><a href={hashOf({ view: "task", slug: task.slug, sparsity: task.sparsities.map(String).includes(tag) ? tag : "" })}><bdi>{task.title}</bdi></a></th>)}
          <th scope="col">Tasks</th></tr></thead>
        <tbody>{lines.map((line) => <MatrixRow key={line.method.label} line={line} across={across} tops={tops} hidden={!shown.has(line)} />)}</tbody>
      </table>
    </div>
  </>);
}

interface Line { method: Board["methods"][number]; own: (Cell | undefined)[]; known: number; mean: number | null }

// A row stays in the page while it is hidden, and is drawn anew only where its cells change: typing stays quick.
class MatrixRow extends Component<{ line: Line; across: { place: number }[]; tops: number[]; hidden: boolean }> {
  shouldComponentUpdate(next: MatrixRow["props"]): boolean {
    const { line, across, hidden } = this.props;
    return next.line !== line || next.across !== across || next.hidden !== hidden;
  }

  render() {
    const { line, across, tops, hidden } = this.props;
    const { label } = line.method;
    return (
      <tr hidden={hidden}>
        <th scope="row" class="name"><a href={hashOf({ view: "method", slug: label })}><bdi>{label}</bdi></a></th>
        {across.map(({ place }) => <MatrixCell key={place} cell={line.own[place]} top={tops[place]} />)}
        <td>{line.known}/{line.own.length}</td>
      </tr>
    );
  }
}

function MatrixCell(props: { cell: Cell | undefined; top: number }) {
  const { cell, top } = props;
  if (!cell || cell.mean === null) return <td class="faint">—</td>;
  const text = number(cell.mean, 1);
  const best = cell.rank !== "" && !cell.collapsed && cell.mean === top;
  return <td title={`${spread(cell.mean, cell.width, 1)}${cell.rank && `, rank ${cell.rank}`}`} class={cell.collapsed ? "collapsed" : ""}>{cell.collapsed ? `(${text})` : best ? <strong>{text}</strong> : text}</td>;
}
