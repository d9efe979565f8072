// Files that the reader saves: CSV, JSON, and a plot as PNG with its colours as they are shown.
export function saveText(text: string, name: string, type: string): void {
  saveAddress(URL.createObjectURL(new Blob([text], { type })), name);
}

function saveAddress(address: string, name: string): void {
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  if (address.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// One line a row. Text that a spreadsheet would take for a formula gets an apostrophe.
export function csv(heads: string[], rows: (string | number | null)[][]): string {
  const cell = (value: string | number | null): string => {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [heads, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

const LOOKS = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight"];

export async function savePicture(svg: SVGSVGElement | null | undefined, name: string): Promise<void> {
  if (!svg) return;
  const copy = svg.cloneNode(true) as SVGSVGElement;
  const [from, to] = [svg, copy].map((one) => [one, ...one.querySelectorAll<SVGElement>("*")]);
  from.forEach((element, place) => {
    const looks = getComputedStyle(element);
    for (const look of LOOKS) to[place].setAttribute(look, looks.getPropertyValue(look));
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * svg.clientWidth, 2 * svg.clientHeight];
  const pen = canvas.getContext("2d");
  if (!pen) return;
  pen.fillStyle = getComputedStyle(document.body).backgroundColor;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  saveAddress(canvas.toDataURL("image/png"), `${name}.png`);
}
