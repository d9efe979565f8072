// A task: the answer, two plots and the ranking on the first screen; the other tabs below the same choosers.
import { useMemo } from "preact/hooks";
import type { Board, Groups, Hypothesis, Metric, Num, Rows, Task, Width } from "./data";
import { metricOf, useChunk } from "./data";
import { number, speedText, spread, times } from "./format";
import { Curves, Figure, Legend, Pareto, SpeedPlot, type Curve, type Frame, type Spot } from "./plots";
import { atSparsity, columnsOf, matches, rowsOf, sorted, type ColumnSpec, type Row } from "./rows";
import { csv, saveText } from "./save";
import { hashOf, TABS, type State } from "./state";
import { Ranking } from "./table";

type Set = (change: Partial<State>) => void;

export interface View { board: Board; task: Task; rows: Row[]; all: Row[]; columns: ColumnSpec[]; state: State; set: Set; tag: string; leaders: string[] }

const PLACES = (sparsity: number) => -Math.log10(Math.max(1e-4, 1 - sparsity));

export function TaskPage(props: { board: Board; task: Task; state: State; set: Set }) {
  const { board, task, state, set } = props;
  const chunk = useChunk<Rows>(task.slug);
  const tag = state.sparsity || (task.shown === null ? "native" : String(task.shown));
  const all = useMemo(() => (chunk ? rowsOf(board, chunk, state.device) : []), [chunk, state.device]);
  const columns = useMemo(() => columnsOf(board, task, chunk?.folded[tag] ?? []).filter((column) => column.key === "speed" || all.some((row) => column.order(row) !== null)), [all, tag]);
  const here = useMemo(() => atSparsity(all, tag), [all, tag]);
  const sortKey = state.sort || `-${task.lead}`;
  const rows = useMemo(() => {
    const column = columns.find((one) => one.key === sortKey.replace(/^-/, ""));
    const base = task.reference === null ? "dense" : board.methods[task.reference].label;
    const pinned = (row: Row) => row.dense && (row.label === "dense" || row.label === base);
    return sorted(here.filter((row) => pinned(row) || matches(row.label, state.query)), column, sortKey.startsWith("-"), pinned);
  }, [here, columns, sortKey, state.query]);
  const leaders = useMemo(() => {
    const ranked = here.filter((row) => !row.dense && !row.collapsed && row.ranked && row.sparsity !== null && row.mean(task.lead) !== null);
    const best = ranked.sort((a, b) => (b.mean(task.lead) as number) - (a.mean(task.lead) as number)).slice(0, 5).map((row) => row.label);
    return [...new Set([...state.picked, ...best])];
  }, [here, state.picked]);
  const tab = (TABS as readonly string[]).includes(state.tab) ? state.tab : "ranking";
  const view: View = { board, task, rows, all, columns, state: { ...state, sort: sortKey }, set, tag, leaders };
  return (<>
    <Choosers {...view} />
    <p class="answer" aria-live="polite"><Answer {...view} /></p>
    <nav class="tabs" aria-label="Parts of this task">
      {TABS.map((name) => (
        <a key={name} href={hashOf({ ...state, tab: name === "ranking" ? "" : name })} aria-current={tab === name ? "page" : undefined}>{name[0].toUpperCase() + name.slice(1)}</a>
      ))}
    </nav>
    {!chunk && tab !== "provenance" ? <p class="faint">Loading …</p> : <Tab {...view} tab={tab} />}
  </>);
}

function Tab(props: View & { tab: string }) {
  switch (props.tab) {
    case "curves": return <CurvesTab {...props} />;
    case "groups": return <GroupsTab {...props} />;
    case "speed": return <SpeedTab {...props} />;
    case "methods": return <MethodsTab {...props} />;
    case "hypotheses": return <HypothesesTab {...props} />;
    case "provenance": return <ProvenanceTab {...props} />;
    default: return <RankingTab {...props} />;
  }
}

function Choosers(props: View) {
  const { board, task, state, set, tag } = props;
  const sparsities = task.sparsities.map(String);
  return (
    <div class="choosers">
      <label>Task <select value={task.slug} onChange={(event) => set({ slug: event.currentTarget.value, sparsity: "", device: 0 })}>
        {board.tasks.map((one) => <option key={one.slug} value={one.slug}>{one.title}</option>)}
      </select></label>
      <label>Sparsity <select value={tag} onChange={(event) => set({ sparsity: event.currentTarget.value })}>
        {[...sparsities, ...(sparsities.length ? [] : ["native"])].map((one) => <option key={one}>{one}</option>)}
      </select></label>
      {task.devices.length > 0 && (
        <label>Device <select value={String(state.device)} onChange={(event) => set({ device: Number(event.currentTarget.value) })}>
          {task.devices.map((one, place) => <option key={one} value={String(place)}>{one}</option>)}
        </select></label>
      )}
    </div>
  );
}

function Answer(props: View) {
  const { board, task, tag } = props;
  const found = task.answers.find((answer) => String(answer.sparsity) === tag);
  if (!found) return <>No ranked method has all its seeds at this sparsity.</>;
  const label = board.methods[found.method].label;
  const place = found.words.indexOf(label);
  return (<>
    {place < 0 ? <bdi>{found.words}</bdi> : <>{found.words.slice(0, place)}<a href={hashOf({ view: "method", slug: label })}><strong><bdi>{label}</bdi></strong></a>{found.words.slice(place + label.length)}</>}
    {found.faster.length > 0
      ? <> Measurably faster than dense: {found.faster.slice(0, 4).map((one) => board.methods[one].label).join(", ")}{found.faster.length > 4 && ` and ${found.faster.length - 4} more`}.</>
      : task.devices.length > 0 && <> No method was measured to be faster than dense on a quiet machine.</>}
  </>);
}

// Ranking

function RankingTab(props: View) {
  const { board, task, rows, columns, state, set, tag } = props;
  const lead = metricOf(board, task.lead) as Metric;
  const spots = spotsOf(props, lead);
  const most = Math.max(0, ...spots.map((spot) => Math.abs(spot.gap ?? 0)));
  const toggle = picker(props);
  const name = `${task.slug}-${tag}`;
  return (<>
    <div class="figures">
      {spots.length > 0 && (
        <Figure title={`Minorities against measured speed, sparsity ${tag}`} name={`${name}-pareto`}
          caption={<>Up and right is better; line: the front; square: {reference(props)}. Colour, bias gap: <Legend most={most} /></>}
          draw={(frame) => <Pareto {...frame} spots={spots} best={props.leaders[state.picked.length]} x="Measured speed-up" y={`${lead.short}, %`} onPick={toggle} />} />
      )}
      <CurveFigure {...props} metric={lead} caption="The five best here are named, the others grey; tick a row to add one." />
    </div>
    <div class="tools">
      <label class="search">Find a method <input type="search" value={state.query} onInput={(event) => set({ query: event.currentTarget.value })} /></label>
      <span class="faint" aria-live="polite">{rows.length} rows</span>
      <button type="button" onClick={() => saveText(tableCsv(props), `${name}.csv`, "text/csv")}>CSV</button>
      <button type="button" onClick={() => saveText(tableJson(props), `${name}.json`, "application/json")}>JSON</button>
      {state.picked.length > 0 && <button type="button" onClick={() => set({ picked: [] })}>Clear selection</button>}
    </div>
    <Ranking board={board} task={task} rows={rows} columns={columns} state={state} set={set} />
    {task.remarks.length > 0 && <ul class="note">{task.remarks.map((line) => <li key={line}><bdi>{line}</bdi></li>)}</ul>}
    <p class="note">± is the half-width of the 95 % interval over seeds. A rank is the range of places that the tests allow.
      n.s.: the interval of the speed-up holds 1. Columns are explained on hovering, and <a href={hashOf({ view: "about" })}>here</a>.</p>
  </>);
}

const reference = (props: View): string => (props.task.reference === null ? "dense" : props.board.methods[props.task.reference].label);

function picker(props: View) {
  const { state, set } = props;
  return (label: string) => set({ picked: state.picked.includes(label) ? state.picked.filter((one) => one !== label) : [...state.picked, label] });
}

function spotsOf(props: View, metric: Metric): Spot[] {
  const base = reference(props);
  return props.rows.filter((row) => !row.dense || row.label === base).flatMap((row) => {
    const y = row.mean(metric.name);
    const speed = row.speed?.mean ?? (row.dense ? 1 : null);
    if (y === null || speed === null || speed <= 0) return [];
    const width = row.speed?.width ?? null;
    return [{
      label: row.label, x: speed, y, gap: row.mean("bias_gap"), hollow: row.collapsed !== "", marked: props.state.picked.includes(row.label),
      reference: row.label === base,
      ...(width !== null && { low: Math.max(1e-3, speed - width), high: speed + width }),
      hint: `${row.label}, ${row.tag}\n${metric.short} ${spread(y, row.width(metric.name), 1)} %\nmeasured ${times(speed)}${row.speed?.remark ? ` (${row.speed.remark})` : ""}\ngap ${number(row.mean("bias_gap"), 1)}${row.collapsed && `\ncollapsed: ${row.collapsed}`}`,
    }];
  });
}

function tableRows(props: View): [string[], (string | number | null)[][]] {
  const metrics = props.board.metrics.filter((metric) => props.rows.some((row) => row.mean(metric.name) !== null));
  const heads = ["task", "method", "sparsity", "achieved", "rank", "collapsed", ...metrics.flatMap((metric) => [metric.name, `${metric.name}_half_width`]),
    "in_distribution", "in_distribution_half_width", "unranked", "change", "change_half_width", "speed_up", "speed_up_half_width", "speed_remark", "dense_ms", "pruned_ms", "nonzero_macs_share", "nonzero_parameters", "training", "seeds"];
  return [heads, props.rows.map((row) => [
    props.task.title, row.label, row.tag, row.achieved, row.rank, row.collapsed, ...metrics.flatMap((metric) => [row.mean(metric.name), half(row.mean(metric.name), row.width(metric.name))]),
    row.inside, half(row.inside, row.insideWidth), row.unranked, row.change, half(row.change, row.changeWidth), row.speed?.mean ?? null, row.speed?.width ?? null, row.speed?.remark ?? "", row.speed?.dense ?? null, row.speed?.pruned ?? null,
    row.macs, row.parameters, row.training, row.seeds,
  ])];
}

// The longer side of an interval that is cut.
const half = (mean: Num, width: Width): Num =>
  Array.isArray(width) ? Number(Math.max((mean as number) - (width[0] as number), (width[1] as number) - (mean as number)).toFixed(3)) : width;

const tableCsv = (props: View): string => csv(...tableRows(props));

function tableJson(props: View): string {
  const [heads, rows] = tableRows(props);
  return `${JSON.stringify(rows.map((row) => Object.fromEntries(heads.map((head, place) => [head, row[place]]))), null, 1)}\n`;
}

// Curves

function CurveFigure(props: View & { metric: Metric; caption: string }) {
  const { task, all, metric, leaders } = props;
  const pick = picker(props);
  const curves = useMemo(() => {
    const labels = [...new Set(all.filter((row) => !row.dense && (row.sparsity ?? 1) > 0).map((row) => row.label))];
    return labels.filter((label) => matches(label, props.state.query) || leaders.includes(label)).map((label): Curve => {
      const own = all.filter((row) => row.label === label && !row.dense);
      const points = own.map((row) => ({
        x: PLACES(row.sparsity ?? row.achieved ?? 0), y: row.mean(metric.name),
        hint: `${label}, ${row.tag}\n${spread(row.mean(metric.name), row.width(metric.name), metric.decimals)} ${metric.unit}`,
      })).sort((a, b) => a.x - b.x);
      return { label, points, lead: leaders.indexOf(label), star: own.every((row) => row.sparsity === null) };
    }).filter((curve) => curve.points.some((point) => point.y !== null));
  }, [all, leaders, metric, props.state.query]);
  const base = all.find((row) => row.dense && row.label === reference(props)) ?? all.find((row) => row.dense);
  const value = base?.mean(metric.name) ?? null;
  const ticks = task.sparsities.map((sparsity): [number, string] => [PLACES(sparsity), String(sparsity)]);
  return (
    <Figure title={`${metric.title} over sparsity`} name={`${task.slug}-${metric.name}`} caption={props.caption}
      draw={(frame: Frame) => (
        <Curves {...frame} curves={curves} ticks={ticks} y={`${metric.short}${metric.unit && `, ${metric.unit}`}`} onPick={pick}
          least={metric.unit ? 5 : 0} reference={base && value !== null ? { label: base.label, value } : undefined} />
      )} />
  );
}

function CurvesTab(props: View) {
  const shown = props.board.metrics.filter((metric) => props.all.some((row) => row.mean(metric.name) !== null));
  return <div class="figures">{shown.map((metric) => <CurveFigure key={metric.name} {...props} metric={metric} caption={`${metric.help}.`} />)}</div>;
}

// Groups

function GroupsTab(props: View) {
  const groups = useChunk<Groups>(`${props.task.slug}-groups`);
  if (!groups) return <p class="faint">Loading …</p>;
  const rows = props.all.filter((row) => groups.maps[row.place]);
  const base = rows.find((row) => row.dense && row.label === reference(props)) ?? rows[0];
  const here = rows.filter((row) => row.tag === props.tag && !row.dense);
  const other = here.find((row) => row.label === props.leaders[0]) ?? here[0] ?? rows[1];
  if (!base) return <p>No run of this task says how each group fared.</p>;
  const picked = props.state.picked.slice(0, 1).flatMap((label) => here.filter((row) => row.label === label));
  return (
    <section aria-label="Accuracy by group">
      <p>Accuracy in % by label (rows) and bias (columns), mean over seeds. Framed: bias-aligned, most of the training images. Dark is low.
        {" "}Tick a method in the ranking to see it here.</p>
      <div class="heats">{[base, picked[0] ?? other].filter(Boolean).map((row) => <Heat key={row.place} row={row} groups={groups} />)}</div>
    </section>
  );
}

function Heat(props: { row: Row; groups: Groups }) {
  const values = props.groups.maps[props.row.place];
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={`Groups of ${props.row.label}`}>
      <table class="heat">
        <caption><bdi>{props.row.label}</bdi>, {props.row.tag}</caption>
        <thead><tr><td />{values[0].map((_, bias) => <th key={bias} scope="col"><span class="hidden">bias </span>{bias}</th>)}</tr></thead>
        <tbody>{values.map((line, label) => (
          <tr key={label}><th scope="row"><span class="hidden">label </span>{label}</th>
            {line.map((value, bias) => (
              <td key={bias} class={`${value === null ? "" : `heat${Math.min(4, Math.floor(value / 20))}`}${props.groups.aligned[label]?.[bias] ? " aligned" : ""}`}>
                {value === null ? "" : value}</td>
            ))}</tr>
        ))}</tbody>
      </table>
    </div>
  );
}

// Speed

function SpeedTab(props: View) {
  const { task, all } = props;
  const spots: Spot[] = all.filter((row) => !row.dense && row.speed?.mean && row.ideal && matches(row.label, props.state.query)).map((row) => ({
    label: row.label, x: row.ideal as number, y: row.speed?.mean as number, gap: null, hollow: row.collapsed !== "",
    marked: props.state.picked.includes(row.label), hint: `${row.label}, ${row.tag}\nmeasured ${times(row.speed?.mean)}, theoretical ${times(row.ideal, 1)}`,
  }));
  const timed = props.rows.flatMap((row) => row.speeds.map((speed) => ({ row, speed })));
  return (<>
    {task.summary && <p class="answer">{task.summary}</p>}
    {spots.length > 0 && <div class="figures"><Figure title="Theoretical and measured speed-up, all sparsities" name={`${task.slug}-speed`}
      caption="A point a method and sparsity. Dashed: no gain. Line: where zeros would be free."
      draw={(frame) => <SpeedPlot {...frame} spots={spots} onPick={picker(props)} />} /></div>}
    <div class="scroll" tabIndex={0} role="region" aria-label="Latencies">
      <table class="plain">
        <caption>Latencies at {props.tag}: medians over runs; dense and pruned are timed in turns within one run</caption>
        <thead><tr>{["Method", "Speed-up ±", "Dense / itself", "Dense, ms", "Pruned, ms", "Theoretical", "Runs", "Device"].map((head) => <th key={head} scope="col">{head}</th>)}</tr></thead>
        <tbody>{timed.map(({ row, speed }) => (
          <tr key={`${row.place} ${speed[0]}`}><th scope="row"><bdi>{row.label}</bdi></th>
            <td>{speedText(speed[1], speed[2], speed[3])}</td><td>{number(speed[7], 2)}</td><td>{number(speed[4], 2)}</td><td>{number(speed[5], 2)}</td>
            <td>{times(row.ideal, 1)}</td><td>{speed[6]}</td><td class="words">{task.devices[speed[0]]}</td></tr>
        ))}</tbody>
      </table>
    </div>
    {timed.length === 0 && <p>No latency was measured here.</p>}
  </>);
}

// Methods, hypotheses, provenance

function MethodsTab(props: View) {
  const { board } = props;
  const labels = new Set(props.all.map((row) => row.label));
  return <MethodList board={board} labels={board.methods.map((one) => one.label).filter((label) => labels.has(label))} />;
}

export function MethodList(props: { board: Board; labels: string[] }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Methods">
      <table class="plain">
        <thead><tr><th scope="col">Method</th><th scope="col">Supervision</th><th scope="col">Source</th></tr></thead>
        <tbody>{props.board.methods.filter((one) => props.labels.includes(one.label)).map((one) => (
          <tr key={one.label}><th scope="row"><a href={hashOf({ view: "method", slug: one.label })}><bdi>{one.label}</bdi></a></th>
            <td>{one.supervision}</td><td class="words"><bdi>{one.cite}</bdi>{one.paper && <> <a href={`https://doi.org/${one.paper.doi}`} rel="noreferrer" aria-label={`Paper of ${one.label}`}>doi</a></>}</td></tr>
        ))}</tbody>
      </table>
    </div>
  );
}

function HypothesesTab(props: View) {
  const { board, task } = props;
  return (
    <section aria-label="Hypotheses">
      <Cards cards={task.hypotheses} />
      {board.hypotheses.length > 0 && <><h2>The whole board</h2><Cards cards={board.hypotheses} /></>}
      {task.analysis ? <p><a href={task.analysis}>The analysis of this task</a>: what pruning did to each group, and whether it could be predicted.</p>
        : <p>The stored outputs of this task have not been analysed: <code>prunebench analyze</code>.</p>}
    </section>
  );
}

function Cards(props: { cards: Hypothesis[] }) {
  return (
    <div class="cards">{props.cards.map((card) => (
      <article key={card.title} class="card">
        <h3>{card.title}</h3>
        <p><strong>{card.outcome[0].toUpperCase() + card.outcome.slice(1)}</strong>: <bdi>{card.reason}</bdi>.</p>
        <dl>{card.facts.map(([term, text]) => <div key={term}><dt>{term}</dt><dd><bdi>{text}</bdi></dd></div>)}</dl>
      </article>
    ))}</div>
  );
}

function ProvenanceTab(props: View) {
  const { board, task } = props;
  const facts: [string, string][] = [
    ["Task version", String(task.version)], ["Data, as loaded", task.data], ["Model", task.model], ["Seeds", task.seeds.join(", ")], ...task.recipe.map(([name, value]): [string, string] => [name.replaceAll("_", " "), value]),
  ];
  return (
    <section aria-label="Provenance">
      {task.differs && <p>Not averaged with the other tracks of {task.task}: here {task.differs}.</p>}
      {task.notes.map((note) => <p key={note} class="note">{note}</p>)}
      <dl class="facts">{facts.map(([term, text]) => <div key={term}><dt>{term}</dt><dd><bdi>{text}</bdi></dd></div>)}</dl>
      {task.problems.length > 0 && (
        <details open={task.problems.length <= 6}><summary>Missing or failed runs ({task.problems.length})</summary>
          <ul>{task.problems.map((line) => <li key={line}><bdi>{line}</bdi></li>)}</ul></details>
      )}
      <Origins board={board} />
    </section>
  );
}

export function Origins(props: { board: Board }) {
  const list = (title: string, entries: [string, number][]) => (
    <table class="small"><caption>{title}</caption><thead><tr><th scope="col">What</th><th scope="col">Finished runs</th></tr></thead>
      <tbody>{entries.map(([name, runs]) => <tr key={name}><td class="words"><bdi>{name}</bdi></td><td>{runs}</td></tr>)}</tbody></table>
  );
  return (<>
    {list("Machines and versions, whole board", props.board.environments)}
    {list("Code, whole board", props.board.commits)}
    {props.board.history.length > 0 && <><h3>Versions that are no longer listed</h3><ul>{props.board.history.map((line) => <li key={line}><bdi>{line}</bdi></li>)}</ul></>}
  </>);
}
