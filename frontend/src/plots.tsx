// Plots as SVG: axes from d3's scales, drawn when they come into view; colours stand in the style sheet.
import { scaleLinear, scaleLog } from "d3-scale";
import { line as joined } from "d3-shape";
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { number } from "./format";
import { savePicture } from "./save";

export interface Frame { width: number; height: number }

const MARGIN = { top: 12, right: 14, bottom: 42, left: 46 };
const [LABEL, LETTER] = [12, 7.2];  // the height of a label and the width of a letter, in pixels
const TITLE = 26;  // the width of the upright title of an axis, with the room on both sides of the numbers

const cut = (text: string, most = 22): string => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// A box that measures its width and draws its plot once it has been seen; with a button that saves the picture.
export function Figure(props: {
  title: string; caption: ComponentChildren; name: string; ratio?: number; height?: number; draw: (frame: Frame) => ComponentChildren;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const sized = new ResizeObserver(() => setWidth(element.clientWidth));
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      sized.observe(element);
    }, { rootMargin: "200px" });
    seen.observe(element);
    return () => { seen.disconnect(); sized.disconnect(); };
  }, []);
  const height = props.height ?? Math.round(Math.max(250, Math.min(320, width * (props.ratio ?? 0.6))));
  return (
    <figure>
      <figcaption>
        <strong>{props.title}</strong>
        <button type="button" class="quiet" onClick={() => savePicture(box.current?.querySelector("svg"), props.name)}
          aria-label={`PNG of: ${props.title}`}>PNG</button>
        <span>{props.caption}</span>
      </figcaption>
      <div class="plot" ref={box}>{width > 0 && props.draw({ width, height })}</div>
    </figure>
  );
}

interface AxisSpec { title: string; low: number; high: number; log?: boolean; ticks?: [number, string][]; unit?: string }

export function limits(values: number[], pad = 0.06, least = 0): [number, number] {
  if (!values.length) return [0, 1];
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const more = Math.max(least - (high - low), 0) / 2;
  [low, high] = [low - more, high + more];
  const room = (high - low || 1) * pad;
  return [low - room, high + room];
}

function Axes(props: Frame & { x: AxisSpec; y: AxisSpec; right?: number; label: string;
  children: (x: (value: number) => number, y: (value: number) => number) => ComponentChildren }) {
  const { width, height, x, y } = props;
  const right = width - (props.right ?? MARGIN.right);
  const bottom = height - MARGIN.bottom;
  const along = (spec: AxisSpec, from: number, to: number) =>
    (spec.log ? scaleLog() : scaleLinear()).domain([spec.low, spec.high]).range([from, to]);
  const sy = along(y, bottom, MARGIN.top);
  const ticks = (spec: AxisSpec, scale: typeof sy, most: number): [number, string][] => {
    if (spec.ticks) return spec.ticks;
    const found = spec.log ? RATIOS.filter((value) => value >= spec.low && value <= spec.high) : scale.ticks(most);
    return found.map((value) => [value, `${number(value, decimalsOf(found))}${spec.unit ?? ""}`]);
  };
  const up = ticks(y, sy, height / 55);
  const left = Math.max(MARGIN.left, TITLE + LETTER * Math.max(...up.map(([, text]) => text.length)));
  const sx = along(x, left, right);
  const across = spaced(ticks(x, sx, Math.max(2, width / 90)), (value) => sx(value), 38);
  return (
    <svg role="img" aria-label={props.label} width={width} height={height} viewBox={`0 0 ${width} ${height}`}>
      {up.map(([value, text]) => (
        <g key={`y${value}`}>
          <line class="grid" x1={left} x2={right} y1={sy(value)} y2={sy(value)} />
          <text class="tick" x={left - 6} y={sy(value) + 4} text-anchor="end">{text}</text>
        </g>
      ))}
      {across.map(([value, text]) => (
        <g key={`x${value}`}>
          <line class="grid" y1={MARGIN.top} y2={bottom} x1={sx(value)} x2={sx(value)} />
          <text class="tick" x={sx(value)} y={bottom + 16} text-anchor="middle">{text}</text>
        </g>
      ))}
      <text class="axis" x={(left + right) / 2} y={height - 6} text-anchor="middle">{x.title}</text>
      <text class="axis" text-anchor="middle" transform={`translate(12 ${(MARGIN.top + bottom) / 2}) rotate(-90)`}>{y.title}</text>
      {props.children((value) => sx(value), (value) => sy(value))}
    </svg>
  );
}

const RATIOS = [0.05, 0.1, 0.2, 0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500];

function decimalsOf(values: number[]): number {
  return Math.max(0, ...values.map((value) => (String(Math.round(value * 1000) / 1000).split(".")[1] ?? "").length));
}

function spaced(ticks: [number, string][], at: (value: number) => number, room: number): [number, string][] {
  const kept: [number, string][] = [];
  for (const tick of ticks) {
    if (!kept.length || Math.abs(at(tick[0]) - at(kept[kept.length - 1][0])) >= room) kept.push(tick);
  }
  return kept;
}

// Heights that are at least a line apart, as near to the wanted ones as one pass down and up leaves them.
export function apart(heights: number[], low: number, high: number): number[] {
  const order = heights.map((_, place) => place).sort((a, b) => heights[a] - heights[b]);
  const found = [...heights];
  let last = low - LABEL;
  for (const place of order) { found[place] = Math.max(found[place], last + LABEL); last = found[place]; }
  let next = high + LABEL;
  for (const place of [...order].reverse()) { found[place] = Math.min(found[place], next - LABEL); next = found[place]; }
  return found;
}

// From blue (no gap) to dark red brown; told apart by lightness alone, too.
const SHADES = ["gap0", "gap1", "gap2", "gap3", "gap4"];

export function shadeOf(gap: number | null, most: number): string {
  if (gap === null) return "gapless";
  return SHADES[Math.max(0, Math.min(SHADES.length - 1, Math.floor((Math.abs(gap) / (most || 1)) * SHADES.length)))];
}

export interface Spot {
  label: string; x: number; y: number; gap: number | null; hollow: boolean; hint: string; marked: boolean; reference?: boolean;
  low?: number; high?: number;
}

// Which spots no other beats in both directions, from left to right.
export function front(spots: Spot[]): Spot[] {
  const kept: Spot[] = [];
  let best = -Infinity;
  for (const spot of [...spots].filter((one) => !one.hollow).sort((a, b) => b.x - a.x || b.y - a.y)) {
    if (spot.y > best) { kept.push(spot); best = spot.y; }
  }
  return kept.reverse();
}

export function Pareto(props: Frame & { spots: Spot[]; x: string; y: string; best: string | undefined; onPick: (label: string) => void }) {
  const { spots } = props;
  const edge = front(spots);
  const named = new Set([...edge, ...spots.filter((spot) => spot.marked || spot.reference || spot.label === props.best)].map((spot) => spot.label));
  const most = Math.max(0, ...spots.map((spot) => Math.abs(spot.gap ?? 0)));
  const [left, right] = limits([1, ...spots.map((spot) => spot.x)].map(Math.log), 0.12, Math.log(1.3)).map(Math.exp);
  const [low, high] = limits(spots.map((spot) => spot.y), 0.1, 5);
  return (
    <Axes {...props} label={`${props.y} against ${props.x}; the table below has the same numbers. On the front: ${edge.map((spot) => spot.label).join(", ")}.`}
      x={{ title: props.x, low: left, high: right, log: true, unit: "×" }} y={{ title: props.y, low, high }}>
      {(x, y) => {
        const labelled = spots.filter((spot) => named.has(spot.label));
        const heights = placed(labelled.map((spot) => ({ x: x(spot.x), y: y(spot.y), width: LETTER * cut(spot.label).length })));
        return (<>
          <line class="level" x1={x(1)} x2={x(1)} y1={y(low)} y2={y(high)} />
          <path class="front" d={joined<Spot>((spot) => x(spot.x), (spot) => y(spot.y))(edge) ?? ""} />
          {spots.filter((spot) => spot.low !== undefined && named.has(spot.label)).map((spot) => (
            <line key={spot.label} class="whisker" y1={y(spot.y)} y2={y(spot.y)} x1={x(Math.max(spot.low as number, left))} x2={x(Math.min(spot.high as number, right))} />
          ))}
          {[...spots].sort((a, b) => Number(a.reference ?? 0) - Number(b.reference ?? 0)).map((spot) => (
            <g key={spot.label} class={`spot ${spot.hollow ? "hollow" : shadeOf(spot.gap, most)}${spot.marked || spot.reference ? " marked" : ""}`}
              onClick={() => props.onPick(spot.label)}>
              <title>{spot.hint}</title>
              {spot.reference
                ? <rect x={x(spot.x) - 5} y={y(spot.y) - 5} width={10} height={10} />
                : <circle cx={x(spot.x)} cy={y(spot.y)} r={spot.marked ? 7 : 5.5} />}
            </g>
          ))}
          {labelled.map((spot, place) => {
            const flip = x(spot.x) + LETTER * cut(spot.label).length + 10 > props.width - MARGIN.right;
            return (
              <text key={spot.label} class="name" x={x(spot.x) + (flip ? -9 : 9)} y={heights[place] + 4}
                text-anchor={flip ? "end" : "start"}>{cut(spot.label)}</text>
            );
          })}
        </>);
      }}
    </Axes>
  );
}

// Heights of labels, moved apart where two would stand on each other.
function placed(labels: { x: number; y: number; width: number }[]): number[] {
  const found: number[] = labels.map((label) => label.y);
  const order = labels.map((_, place) => place).sort((a, b) => labels[a].y - labels[b].y);
  order.forEach((place, turn) => {
    for (let tries = 0; tries < order.length; tries += 1) {
      const clash = order.slice(0, turn).find((other) =>
        Math.abs(labels[other].x - labels[place].x) < Math.max(labels[other].width, labels[place].width) + 12
        && Math.abs(found[other] - found[place]) < LABEL);
      if (clash === undefined) break;
      found[place] = found[clash] + LABEL;
    }
  });
  return found;
}

export interface Curve { label: string; points: { x: number; y: number | null; hint: string }[]; lead: number; star?: boolean }

// A metric over sparsity: leading methods in colour with their names at the ends, the others grey.
export function Curves(props: Frame & { curves: Curve[]; ticks: [number, string][]; y: string; reference?: { label: string; value: number }; least?: number; onPick?: (label: string) => void }) {
  const { curves, reference } = props;
  const values = curves.flatMap((curve) => curve.points.map((point) => point.y)).filter((y): y is number => y !== null);
  const [low, high] = limits([...values, ...(reference ? [reference.value] : [])], 0.06, props.least ?? 5);
  const places = [...props.ticks.map(([place]) => place), ...curves.flatMap((curve) => curve.points.map((point) => point.x))];
  const [left, end] = limits(places, 0.05);
  const leading = curves.filter((curve) => curve.lead >= 0 && curve.points.some((point) => point.y !== null));
  const ends = leading.map((curve) => curve.points.filter((point) => point.y !== null).at(-1) as { x: number; y: number });
  const words = [...leading.map((curve) => curve.label), ...(reference ? [reference.label] : [])];
  const right = Math.min(props.width * 0.4, 16 + LETTER * Math.max(4, ...words.map((word) => cut(word).length)));
  return (
    <Axes {...props} right={right} label={`${props.y} over sparsity, by method; the table has the same numbers. Named: ${words.join(", ")}.`}
      x={{ title: "Sparsity (log of density)", low: left, high: end, ticks: props.ticks }} y={{ title: props.y, low, high }}>
      {(x, y) => {
        const heights = apart([...ends.map((point) => y(point.y)), ...(reference ? [y(reference.value)] : [])], MARGIN.top, props.height - MARGIN.bottom);
        const path = joined<{ x: number; y: number | null }>((point) => x(point.x), (point) => y(point.y as number)).defined((point) => point.y !== null);
        const edge = props.width - right;
        const ordered = [...curves].sort((a, b) => a.lead - b.lead);
        return (<>
          {reference && <line class="level" x1={x(left)} x2={edge} y1={y(reference.value)} y2={y(reference.value)} />}
          {ordered.map((curve) => (
            <g key={`${curve.label}${curve.star}`} class={curve.lead < 0 ? "curve behind" : `curve lead${curve.lead % 6}`} onClick={() => props.onPick?.(curve.label)}>
              <title>{curve.label}</title>
              <path d={path(curve.points) ?? ""} />
              {curve.points.filter((point) => point.y !== null).map((point) => (
                <Marker key={point.x} shape={curve.star ? 5 : curve.lead} x={x(point.x)} y={y(point.y as number)} small={curve.lead < 0} hint={point.hint} />
              ))}
            </g>
          ))}
          {leading.map((curve, place) => (
            <g key={curve.label} class={`lead${curve.lead % 6}`}>
              <line class="leader" x1={x(ends[place].x)} y1={y(ends[place].y)} x2={edge + 6} y2={heights[place]} />
              <text class="name" x={edge + 9} y={heights[place] + 4}>{cut(curve.label)}</text>
            </g>
          ))}
          {reference && <text class="name faint" x={edge + 9} y={heights[leading.length] + 4}>{reference.label}</text>}
        </>);
      }}
    </Axes>
  );
}

function Marker(props: { shape: number; x: number; y: number; small: boolean; hint: string }) {
  const { x, y } = props;
  const title = <title>{props.hint}</title>;
  if (props.small) return <circle cx={x} cy={y} r={2}>{title}</circle>;
  const shapes = [
    `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0`, `M${x - 3.5} ${y - 3.5}h7v7h-7z`, `M${x} ${y - 5}l5 5l-5 5l-5 -5z`,
    `M${x} ${y - 5}l5 8h-10z`, `M${x} ${y + 5}l5 -8h-10z`, `M${x} ${y - 6}l1.8 4.2h4.2l-3.4 2.8l1.4 4.4l-4 -2.8l-4 2.8l1.4 -4.4l-3.4 -2.8h4.2z`,
  ];
  return <path class="marker" d={shapes[props.shape % shapes.length]}>{title}</path>;
}

// Measured against theoretical speed-up, both on log axes, with the line where zeros would be free.
export function SpeedPlot(props: Frame & { spots: Spot[]; onPick: (label: string) => void }) {
  const ends = [1, ...props.spots.map((spot) => spot.x)];
  const [left, right] = limits(ends.map(Math.log), 0.06).map(Math.exp);
  const [low, high] = limits([1, ...props.spots.map((spot) => spot.y)].map(Math.log), 0.1, Math.log(1.5)).map(Math.exp);
  const free = Math.min(right, high);
  return (
    <Axes {...props} label="Measured against theoretical speed-up; the table has the same numbers." right={20}
      x={{ title: "Theoretical speed-up (MACs dense / non-zero)", low: left, high: right, log: true, unit: "×" }}
      y={{ title: "Measured speed-up", low, high, log: true, unit: "×" }}>
      {(x, y) => (<>
        <line class="level" x1={x(left)} x2={x(right)} y1={y(1)} y2={y(1)} />
        {free > Math.max(left, low) && <line class="front" x1={x(Math.max(left, low))} y1={y(Math.max(left, low))} x2={x(free)} y2={y(free)} />}
        {props.spots.map((spot) => (
          <g key={spot.hint} class={`spot plain${spot.hollow ? " hollow" : ""}${spot.marked ? " marked" : ""}`} onClick={() => props.onPick(spot.label)}>
            <title>{spot.hint}</title><circle cx={x(spot.x)} cy={y(spot.y)} r={spot.marked ? 6 : 4} />
          </g>
        ))}
      </>)}
    </Axes>
  );
}

export function Legend(props: { most: number }) {
  return (
    <span class="shades">
      <span>0</span>
      {SHADES.map((shade) => <i key={shade} class={shade} />)}
      <span>{number(props.most, 0)} points</span>
      <i class="hollow" /><span>collapsed</span>
    </span>
  );
}


export interface Strip { title: string; best: { label: string; x: number } | null; spots: { label: string; x: number; hollow: boolean; hint: string }[]; reference: number | null }

const [STRIP, BELOW] = [40, 34];  // the height of a line of strips, and of the axis under them

export const heightOf = (strips: Strip[]): number => STRIP * strips.length + BELOW;

// A line a task: a dot a method, the best one named above its dot, the unpruned reference as a square.
export function Strips(props: Frame & { strips: Strip[]; x: string; label: string }) {
  const { strips, width, height } = props;
  const found = limits(strips.flatMap((strip) => [...strip.spots.map((spot) => spot.x), ...(strip.reference === null ? [] : [strip.reference])]), 0.04, 10);
  const x = scaleLinear().domain([Math.max(0, found[0]), Math.min(100, found[1])]).range([10, width - 10]);
  return (
    <svg role="img" aria-label={props.label} width={width} height={height} viewBox={`0 0 ${width} ${height}`}>
      {x.ticks(Math.max(2, width / 90)).map((value) => (
        <g key={value}>
          <line class="grid" x1={x(value)} x2={x(value)} y1={0} y2={height - BELOW} />
          <text class="tick" x={x(value)} y={height - BELOW + 14} text-anchor="middle">{value}</text>
        </g>
      ))}
      <text class="axis" x={width / 2} y={height - 4} text-anchor="middle">{props.x}</text>
      {strips.map((strip, place) => {
        const [top, title] = [STRIP * place, cut(strip.title, Math.floor((0.6 * width) / LETTER))];
        const room = strip.best === null ? 0 : LETTER * cut(strip.best.label).length;
        const from = strip.best === null ? 0 : Math.min(Math.max(x(strip.best.x) - room / 2, LETTER * title.length + 12), width - room - 2);
        return (
          <g key={strip.title}>
            <text class="name faint" x={2} y={top + 13}>{title}</text>
            <line class="strip" x1={10} x2={width - 10} y1={top + 26} y2={top + 26} />
            {strip.spots.map((spot) => (
              <circle key={spot.label} class={`dot${spot.hollow ? " hollow" : ""}${spot.label === strip.best?.label ? " best" : ""}`} cx={x(spot.x)} cy={top + 26}
                r={spot.label === strip.best?.label ? 6 : 4}><title>{spot.hint}</title></circle>
            ))}
            {strip.reference !== null && <rect class="base" x={x(strip.reference) - 4.5} y={top + 21.5} width={9} height={9} />}
            {strip.best !== null && <text class="name best" x={from} y={top + 13}>{cut(strip.best.label)}</text>}
          </g>
        );
      })}
    </svg>
  );
}
