// What of a page cannot be read: text on too little contrast, and what is wider than the window.
(() => {
  // Pictures by themselves are documents, too, in which createElement makes no canvas.
  const sheet = document.createElementNS("http://www.w3.org/1999/xhtml", "canvas");
  const canvas = sheet.getContext("2d", { willReadFrequently: true });
  const known = new Map();

  // A colour, as red, green, blue from 0 to 255 and alpha from 0 to 1, of whatever form CSS writes it in.
  function parsed(colour) {
    if (!known.has(colour)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(colour, [red, green, blue, alpha / 255]);
    }
    return known.get(colour);
  }

  function over(front, back) {
    const alpha = front[3];
    return [0, 1, 2].map((index) => front[index] * alpha + back[index] * (1 - alpha)).concat(1);
  }

  function luminance(colour) {
    const [red, green, blue] = colour.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function contrast(one, other) {
    const [dark, bright] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  }

  const styles = new Map();
  function style(element) {
    if (!styles.has(element)) styles.set(element, getComputedStyle(element));
    return styles.get(element);
  }

  function opacity(element) {
    let found = 1;
    for (let each = element; each; each = each.parentElement) found *= parseFloat(style(each).opacity);
    return found;
  }

  function painted(paint, share, element) {
    const [red, green, blue, alpha] = parsed(paint);
    return [red, green, blue, alpha * parseFloat(share) * opacity(element)];
  }

  // The ground under an element: the backgrounds of what it is in, laid over one another.
  const grounds = new Map();
  function ground(element) {
    if (!element) {
      const scheme = style(document.documentElement).colorScheme;
      const dark = scheme.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches;
      return dark ? [18, 18, 18, 1] : [255, 255, 255, 1];
    }
    if (!grounds.has(element)) {
      const own = parsed(style(element).backgroundColor);
      grounds.set(element, own[3] === 1 ? own : over(own, ground(element.parentElement)));
    }
    return grounds.get(element);
  }

  // The filled shapes of a picture in the order in which they are drawn.
  const pictures = new Map();
  function shapes(picture) {
    if (!pictures.has(picture)) {
      const found = [...picture.querySelectorAll("path, polygon, rect, circle, ellipse, use")].filter(
        (each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest("defs, clipPath, mask")
          && style(each).fill !== "none",
      );
      pictures.set(picture, found.map((each) => [each, each.getBoundingClientRect()]));
    }
    return pictures.get(picture);
  }

  // A shape that is used again has no outline to ask, and is taken for its box.
  function inside(shape, x, y) {
    if (!(shape instanceof SVGGeometryElement)) return true;
    const matrix = shape.getScreenCTM();
    return matrix !== null && shape.isPointInFill(new DOMPoint(x, y).matrixTransform(matrix.inverse()));
  }

  function behind(text, box) {
    const picture = text.ownerSVGElement;
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    let found = ground(picture.parentElement);
    found = over(parsed(style(picture).backgroundColor), found);
    for (const [shape, around] of shapes(picture)) {
      if (text.compareDocumentPosition(shape) & Node.DOCUMENT_POSITION_FOLLOWING) break;
      if (x < around.left || x > around.right || y < around.top || y > around.bottom) continue;
      if (!inside(shape, x, y)) continue;
      found = over(painted(style(shape).fill, style(shape).fillOpacity, shape), found);
    }
    const look = style(text);
    const halo = look.paintOrder.startsWith("stroke") && look.stroke !== "none";
    return halo ? over(painted(look.stroke, look.strokeOpacity, text), found) : found;
  }

  function faint() {
    grounds.clear();
    pictures.clear();
    const found = [];
    const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const words = walker.currentNode.textContent.trim();
      const element = walker.currentNode.parentElement;
      if (!words || element.closest("script, style, noscript, title, desc, template")) continue;
      if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      const range = document.createRange();
      range.selectNodeContents(walker.currentNode);
      const box = range.getBoundingClientRect();
      if (box.width < 2 || box.height < 2) continue;
      const look = style(element);
      const drawn = element.ownerSVGElement !== undefined && element.ownerSVGElement !== null;
      const back = drawn ? behind(element.closest("text"), box) : ground(element);
      const ink = drawn ? painted(look.fill, look.fillOpacity, element) : painted(look.color, 1, element);
      const reached = contrast(over(ink, back), back);
      const size = parseFloat(look.fontSize);
      const large = size >= 24 || (size >= 18.66 && parseInt(look.fontWeight) >= 700);
      if (reached < (large ? 3 : 4.5) - 0.005) {
        const names = [element.closest("[class]")?.getAttribute("class") ?? "", element.tagName.toLowerCase()];
        found.push(`${reached.toFixed(2)} ${names.join(" ")}: ${words.slice(0, 40)}`);
      }
    }
    return found;
  }

  // What can be scrolled within the page, or is cut off by something that does not run out itself.
  function contained(element, width) {
    for (let each = element.parentElement; each && each !== document.body; each = each.parentElement) {
      if (style(each).overflowX !== "visible" && each.getBoundingClientRect().right <= width + 1) return true;
    }
    return false;
  }

  function wide() {
    if (!document.body) return [];  // a picture
    const width = document.documentElement.clientWidth;
    const found = [...document.body.querySelectorAll("*")].filter((each) => {
      if (each.ownerSVGElement || !each.checkVisibility({ visibilityProperty: true })) return false;
      const box = each.getBoundingClientRect();
      return box.width > 1 && box.right > width + 1 && style(each).position !== "fixed"
        && !contained(each, width);
    });
    const reach = document.documentElement.scrollWidth;
    const names = found.map((each) => `${each.tagName.toLowerCase()}.${each.className}`);
    return reach > width + 1 ? [`${reach} pixels of ${width}`, ...names.slice(0, 5)] : names.slice(0, 5);
  }

  window.legibility = { faint, wide };
})();
