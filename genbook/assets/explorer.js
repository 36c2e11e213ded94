// Explorers of a page: controls, a network in plain JavaScript, and the picture that follows. One classic script, so that a page opened from a disk may run it.
(function (root) {
  "use strict";
  if (root.genbook) { root.genbook.mountAll(); return; }

  // ---- numbers: tensors in fp16, the high bytes of all before the low ones, deflated, in base64

  function bytes(text) {
    if (typeof atob !== "function") return new Uint8Array(Buffer.from(text, "base64"));
    var raw = atob(text), out = new Uint8Array(raw.length);
    for (var i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function half(h) {
    var sign = h & 0x8000 ? -1 : 1, e = (h >> 10) & 31, m = h & 1023;
    return sign * (e === 0 ? m * Math.pow(2, -24) : e === 31 ? (m ? NaN : Infinity) : (1 + m / 1024) * Math.pow(2, e - 15));
  }

  function unpacked(pack) { // {index: {name: [start, count]}, data} -> a promise of {name: Float32Array}
    var stream = new Blob([bytes(pack.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer().then(function (buffer) {
      var b = new Uint8Array(buffer), n = b.length / 2, found = {};
      Object.keys(pack.index).forEach(function (name) {
        var start = pack.index[name][0], out = new Float32Array(pack.index[name][1]);
        for (var i = 0; i < out.length; i++) out[i] = half(b[start + i] << 8 | b[n + start + i]);
        found[name] = out;
      });
      return found;
    });
  }

  // ---- layers: each takes and gives {data, shape}, shape (d) or (c, h, w) of one example

  function erf(x) { // to 1e-12: the series near 0, the continued fraction of erfc elsewhere
    var a = Math.abs(x), sum, term, n;
    if (a > 6) return x > 0 ? 1 : -1;
    if (a < 2.5) {
      for (sum = term = a, n = 1; n < 60; n++) { term *= -a * a / n; sum += term / (2 * n + 1); }
      sum *= 2 / Math.sqrt(Math.PI);
    } else {
      for (sum = 0, n = 60; n > 0; n--) sum = n / 2 / (a + sum);
      sum = 1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + sum);
    }
    return x > 0 ? sum : -sum;
  }

  function sigmoid(v) { return 1 / (1 + Math.exp(-v)); }

  var POINTWISE = {
    relu: function () { return function (v) { return v > 0 ? v : 0; }; },
    leaky_relu: function (l) { return function (v) { return v > 0 ? v : l.slope * v; }; },
    elu: function (l) { return function (v) { return v > 0 ? v : l.alpha * Math.expm1(v); }; },
    gelu: function () { return function (v) { return 0.5 * v * (1 + erf(v / Math.SQRT2)); }; },
    silu: function () { return function (v) { return v * sigmoid(v); }; },
    tanh: function () { return Math.tanh; },
    sigmoid: function () { return sigmoid; },
    softplus: function () { return function (v) { return Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v))); }; },
    affine: function (l) { return function (v) { return l.scale * v + l.shift; }; },
    clamp: function (l) { return function (v) { return Math.min(l.high, Math.max(l.low, v)); }; },
    logit: function () { return function (v) { return Math.log(v) - Math.log1p(-v); }; }
  };

  function map(x, f) {
    var out = new Float32Array(x.data.length);
    for (var i = 0; i < out.length; i++) out[i] = f(x.data[i]);
    return { data: out, shape: x.shape };
  }

  function linear(x, l, w) {
    var W = w[l.weight], b = l.bias && w[l.bias], n = l.shape[1], out = new Float32Array(l.shape[0]);
    for (var o = 0; o < out.length; o++) {
      var sum = b ? b[o] : 0;
      for (var i = 0, at = o * n; i < n; i++) sum += W[at + i] * x.data[i];
      out[o] = sum;
    }
    return { data: out, shape: [out.length] };
  }

  function add(out, to, n, rows, weights) { // out[to ..] += the sum of weights times rows, four at a time
    for (var k = 0; k < rows.length; k += 4) {
      var a = rows[k], b = rows[k + 1] || a, c = rows[k + 2] || a, d = rows[k + 3] || a;
      var u = weights[k], v = weights[k + 1] || 0, w = weights[k + 2] || 0, t = weights[k + 3] || 0;
      for (var q = 0; q < n; q++) out[to + q] += u * a[q] + v * b[q] + w * c[q] + t * d[q];
    }
  }

  function biased(out, n, bias) {
    if (bias) for (var c = 0; c < bias.length; c++) out.fill(bias[c], c * n, (c + 1) * n);
  }

  // Calls f(q, at) for every pixel q = y * wide + x of a grid (high, wide) that lies on the image (H, W) at row y * s - p + i, column x * s - p + j.
  function overlap(high, wide, H, W, s, p, i, j, f) {
    for (var y = 0; y < high; y++) {
      var row = y * s[0] - p[0] + i;
      if (row >= 0 && row < H) for (var x = 0; x < wide; x++) {
        var column = x * s[1] - p[1] + j;
        if (column >= 0 && column < W) f(y * wide + x, row * W + column);
      }
    }
  }

  function conv(x, l, w) { // the image as one row for each tap of the kernel, then sums of rows
    var W = w[l.weight], O = l.shape[0], C = l.shape[1], kh = l.shape[2], kw = l.shape[3], s = l.stride, p = l.padding, H = x.shape[1], V = x.shape[2];
    var h = Math.floor((H + 2 * p[0] - kh) / s[0]) + 1, v = Math.floor((V + 2 * p[1] - kw) / s[1]) + 1, n = h * v, rows = [], out = new Float64Array(O * n);
    function tap(c, i, j) {
      var row = new Float64Array(n);
      overlap(h, v, H, V, s, p, i, j, function (q, at) { row[q] = x.data[c * H * V + at]; });
      rows.push(row);
    }
    for (var c = 0; c < C; c++) for (var i = 0; i < kh; i++) for (var j = 0; j < kw; j++) tap(c, i, j);
    biased(out, n, l.bias && w[l.bias]);
    for (var o = 0; o < O; o++) add(out, o * n, n, rows, W.subarray(o * rows.length, (o + 1) * rows.length));
    return { data: Float32Array.from(out), shape: [O, h, v] };
  }

  function transposed(x, l, w) { // weight (c_in, c_out, kh, kw): for each tap a sum of channels, which is then laid on the output
    var W = w[l.weight], C = l.shape[0], O = l.shape[1], kh = l.shape[2], kw = l.shape[3], s = l.stride, p = l.padding, H = x.shape[1], V = x.shape[2], n = H * V;
    var h = (H - 1) * s[0] - 2 * p[0] + kh + l.extra[0], v = (V - 1) * s[1] - 2 * p[1] + kw + l.extra[1], out = new Float64Array(O * h * v), rows = [], sum = new Float64Array(n), taps = new Float64Array(C);
    for (var c = 0; c < C; c++) rows.push(Float64Array.from(x.data.subarray(c * n, (c + 1) * n)));
    function lay(o, i, j) { overlap(H, V, h, v, s, p, i, j, function (q, at) { out[o * h * v + at] += sum[q]; }); }
    biased(out, h * v, l.bias && w[l.bias]);
    for (var o = 0; o < O; o++) for (var i = 0; i < kh; i++) for (var j = 0; j < kw; j++) {
      for (c = 0; c < C; c++) taps[c] = W[((c * O + o) * kh + i) * kw + j];
      sum.fill(0); add(sum, 0, n, rows, taps); lay(o, i, j);
    }
    return { data: Float32Array.from(out), shape: [O, h, v] };
  }

  function scaled(x, scale, shift) { // per channel
    var out = new Float32Array(x.data.length), n = out.length / x.shape[0];
    for (var i = 0; i < out.length; i++) { var c = Math.floor(i / n); out[i] = x.data[i] * scale[c] + shift[c]; }
    return { data: out, shape: x.shape };
  }

  function batchNorm(x, l, w) { // in evaluation
    var mean = w[l.mean], variance = w[l.variance], scale = new Float64Array(mean.length), shift = new Float64Array(mean.length);
    for (var c = 0; c < mean.length; c++) {
      scale[c] = (l.weight ? w[l.weight][c] : 1) / Math.sqrt(variance[c] + l.eps);
      shift[c] = (l.bias ? w[l.bias][c] : 0) - mean[c] * scale[c];
    }
    return scaled(x, scale, shift);
  }

  function groupNorm(x, l, w) {
    var n = x.data.length / l.groups, each = x.data.length / x.shape[0], out = new Float32Array(x.data.length);
    for (var g = 0; g < l.groups; g++) {
      var mean = 0, variance = 0, i;
      for (i = g * n; i < (g + 1) * n; i++) mean += x.data[i] / n;
      for (i = g * n; i < (g + 1) * n; i++) variance += (x.data[i] - mean) * (x.data[i] - mean) / n;
      for (i = g * n; i < (g + 1) * n; i++) {
        var c = Math.floor(i / each);
        out[i] = (x.data[i] - mean) / Math.sqrt(variance + l.eps) * (l.weight ? w[l.weight][c] : 1) + (l.bias ? w[l.bias][c] : 0);
      }
    }
    return { data: out, shape: x.shape };
  }

  function channelNorm(x, l, w) { // over the channels of each pixel
    var C = x.shape[0], n = x.data.length / C, out = new Float32Array(x.data.length);
    for (var i = 0; i < n; i++) {
      var mean = 0, variance = 0, c;
      for (c = 0; c < C; c++) mean += x.data[c * n + i] / C;
      for (c = 0; c < C; c++) variance += Math.pow(x.data[c * n + i] - mean, 2) / C;
      for (c = 0; c < C; c++) out[c * n + i] = (x.data[c * n + i] - mean) / Math.sqrt(variance + l.eps) * w[l.weight][c] + w[l.bias][c];
    }
    return { data: out, shape: x.shape };
  }

  function resized(x, h, v, from) { // `from(y, q)` names the row and column in x, or -1 for zero
    var out = new Float32Array(x.shape[0] * h * v), H = x.shape[1], V = x.shape[2];
    for (var c = 0; c < x.shape[0]; c++) for (var y = 0; y < h; y++) for (var q = 0; q < v; q++) {
      var at = from(y, q), inside = at[0] >= 0 && at[0] < H && at[1] >= 0 && at[1] < V;
      out[(c * h + y) * v + q] = inside ? x.data[(c * H + at[0]) * V + at[1]] : 0;
    }
    return { data: out, shape: [x.shape[0], h, v] };
  }

  function pooled(x, k) {
    var h = Math.floor(x.shape[1] / k), v = Math.floor(x.shape[2] / k), out = new Float32Array(x.shape[0] * h * v);
    for (var c = 0; c < x.shape[0]; c++) for (var y = 0; y < h * k; y++) for (var q = 0; q < v * k; q++)
      out[(c * h + Math.floor(y / k)) * v + Math.floor(q / k)] += x.data[(c * x.shape[1] + y) * x.shape[2] + q] / (k * k);
    return { data: out, shape: [x.shape[0], h, v] };
  }

  function joined(a, b) { // along the channels
    var out = new Float32Array(a.data.length + b.data.length);
    out.set(a.data); out.set(b.data, a.data.length);
    return { data: out, shape: [a.shape[0] + b.shape[0]].concat(a.shape.slice(1)) };
  }

  function part(x, from, to) { // channels
    var n = x.data.length / x.shape[0];
    return { data: x.data.slice(from * n, to * n), shape: [to - from].concat(x.shape.slice(1)) };
  }

  function combined(a, b, f) {
    var out = new Float32Array(a.data.length);
    for (var i = 0; i < out.length; i++) out[i] = f(a.data[i], b.data[i]);
    return { data: out, shape: a.shape };
  }

  var ops = {
    linear: linear, conv: conv, transposed: transposed, batch_norm: batchNorm, group_norm: groupNorm, channel_norm: channelNorm,
    reshape: function (x, l) { return { data: x.data, shape: l.shape }; },
    flatten: function (x) { return { data: x.data, shape: [x.data.length] }; },
    upsample: function (x, l) { return resized(x, x.shape[1] * l.factor, x.shape[2] * l.factor, function (y, q) { return [Math.floor(y / l.factor), Math.floor(q / l.factor)]; }); },
    pad: function (x, l) { var p = l.sides; return resized(x, x.shape[1] + p[2] + p[3], x.shape[2] + p[0] + p[1], function (y, q) { return [y - p[2], q - p[0]]; }); },
    average: function (x, l) { return pooled(x, l.factor); },
    sum: function (x, l, w) { return combined(run(l.first, x, w), run(l.second, x, w), function (a, b) { return a + b; }); },
    concat_elu: function (x) { var elu = POINTWISE.elu({ alpha: 1 }); return joined(map(x, elu), map(x, function (v) { return elu(-v); })); },
    gated: function (x, l, w) { // x + features * sigmoid(gate)
      var y = run(l.layers, x, w), c = y.shape[0] / 2, features = part(y, 0, c);
      if (l.squash) features = map(features, Math.tanh);
      return combined(x, combined(features, part(y, c, 2 * c), function (a, b) { return a * sigmoid(b); }), function (a, b) { return a + b; });
    },
    unsqueeze: function (x) { // (4c, h, w) -> (c, 2h, 2w): the inverse of a squeeze
      var c = x.shape[0] / 4, h = x.shape[1], v = x.shape[2], out = new Float32Array(x.data.length);
      for (var i = 0; i < x.data.length; i++) {
        var q = i % v, y = Math.floor(i / v) % h, k = Math.floor(i / v / h), d = k % 4;
        out[(Math.floor(k / 4) * 2 * h + 2 * y + (d >> 1)) * 2 * v + 2 * q + (d & 1)] = x.data[i];
      }
      return { data: out, shape: [c, 2 * h, 2 * v] };
    },
    squeeze: function (x) { // (c, 2h, 2w) -> (4c, h, w)
      var c = x.shape[0], h = x.shape[1] / 2, v = x.shape[2] / 2, out = new Float32Array(x.data.length);
      for (var i = 0; i < out.length; i++) {
        var q = i % v, y = Math.floor(i / v) % h, k = Math.floor(i / v / h), d = k % 4;
        out[i] = x.data[(Math.floor(k / 4) * 2 * h + 2 * y + (d >> 1)) * 2 * v + 2 * q + (d & 1)];
      }
      return { data: out, shape: [4 * c, h, v] };
    },
    coupling_inverse: function (x, l, w) { return coupled(x, l, w, uncoupledElement); },
    coupling: function (x, l, w) { return coupled(x, l, w, coupledElement); },
    styled: styled,
    multi_scale: function (x, l, w) { // stages from the first to the last; half of the channels of all but these leaves early
      var y = { data: x.data, shape: l.shape }, parts = [];
      l.stages.forEach(function (stage) {
        y = run(stage.layers, y, w);
        if (!stage.splits) return;
        parts.push(part(y, y.shape[0] / 2, y.shape[0]).data);
        y = part(y, 0, y.shape[0] / 2);
      });
      var all = [].concat.apply([], parts.concat([y.data]).map(function (p) { return Array.from(p); }));
      return { data: Float32Array.from(all), shape: [all.length] };
    },
    multi_scale_inverse: function (x, l, w) { // stages from the last to the first; what left early comes back
      var at = 0, parts = l.shapes.map(function (shape) {
        var n = shape[0] * shape[1] * shape[2];
        at += n;
        return { data: x.data.slice(at - n, at), shape: shape };
      }), y = parts.pop();
      l.stages.forEach(function (stage) {
        if (stage.joins) y = joined(y, parts.pop());
        y = run(stage.layers, y, w);
      });
      return y;
    },
    levels: function (x, l) { // to the discrete values of a pixel
      return map(x, function (v) { return Math.min(l.levels - 1, Math.max(0, Math.floor(v * l.levels))) / (l.levels - 1); });
    }
  };
  Object.keys(POINTWISE).forEach(function (name) { ops[name] = function (x, l) { return map(x, POINTWISE[name](l)); }; });

  // A coupling: what the mask keeps decides how each other element is changed.
  function coupled(x, l, w, element) {
    var mask = w[l.mask], n = x.data.length, plane = n / x.shape[0], kept = function (i) { return mask[mask.length === x.shape[0] ? Math.floor(i / plane) : i % mask.length]; };
    var given = { data: x.data.map(function (v, i) { return v * kept(i); }), shape: x.shape };
    var theta = run(l.layers, given, w).data, limits = w[l.limit], out = new Float32Array(n);
    for (var i = 0; i < n; i++) {
      var limit = Math.exp(limits[Math.floor(i / plane)]);
      out[i] = kept(i) > 0 ? x.data[i] : element(x.data[i], limit * Math.tanh(theta[i] / limit), theta[n + i], theta, n, i, l.components);
    }
    return { data: out, shape: x.shape };
  }

  function coupledElement(x, s, t, theta, n, i, K) { return ((K ? mixture(theta, n, i, K).logit(x) : x) + t) * Math.exp(s); }

  function uncoupledElement(y, s, t, theta, n, i, K) { // where there are components the quantile of their mixture, by bisection
    var v = y * Math.exp(-s) - t;
    if (!K) return v;
    var m = mixture(theta, n, i, K), low = m.lowest(v), high = m.highest(v);
    for (var step = 0; step < 50; step++) {
      var middle = (low + high) / 2;
      if (m.logit(middle) > v) high = middle; else low = middle;
    }
    return (low + high) / 2;
  }

  function mixture(theta, n, i, K) { // of logistics: the logit of its distribution function, and the quantiles of the outermost components
    var weight = [], mean = [], scale = [], k;
    for (k = 0; k < K; k++) {
      weight.push(theta[(2 + k) * n + i]); scale.push(Math.exp(2 * Math.tanh(theta[(2 + 2 * K + k) * n + i] / 2)));
      mean.push(theta[(2 + K + k) * n + i] + (K > 1 ? -1 + 2 * k / (K - 1) : -1));
    }
    var most = Math.max.apply(null, weight), ends = function (logit) { return mean.map(function (m, k) { return m + scale[k] * logit; }); };
    weight = weight.map(function (a) { return Math.exp(a - most); });
    return {
      logit: function (x) {
        var up = 0, down = 0;
        for (var k = 0; k < K; k++) { var t = (x - mean[k]) / scale[k]; up += weight[k] * sigmoid(t); down += weight[k] * sigmoid(-t); }
        return Math.log(up) - Math.log(down);
      },
      lowest: function (logit) { return Math.min.apply(null, ends(logit)); },
      highest: function (logit) { return Math.max.apply(null, ends(logit)); }
    };
  }

  // ---- a generator by styles: the code, or two codes, how far they are drawn to the mean, and how many layers are of the first

  function styled(x, l, w) {
    var d = l.dim, two = x.data.length > d, psi = two ? x.data[2 * d] : 1, crossing = two ? x.data[2 * d + 1] : l.convs.length;
    var styles = (two ? [x.data.slice(0, d), x.data.slice(d, 2 * d)] : [x.data]).map(function (z) { return run(l.mapping, { data: z, shape: [d] }, w); });
    styles.forEach(function (s) { l.mean.forEach(function (m, i) { s.data[i] = m + psi * (s.data[i] - m); }); });
    var y = { data: w[l.constant], shape: l.shape }, image = null;
    l.convs.forEach(function (conv, i) {
      var style = styles[i < crossing ? 0 : 1], last = i === l.convs.length - 1;
      y = modulated(y, conv, style, w);
      if (conv.up) y = doubled(y);
      y = noisy(y, conv, l, w);
      if (i % 2) return;
      var drawn = modulated(y, l.images[i / 2], style, w);
      image = image ? combined(image, drawn, function (a, b) { return a + b; }) : drawn;
      if (!last) image = doubled(image);
    });
    return image;
  }

  function modulated(x, l, style, w) { // a convolution of channels that a style scales, divided by the length of the scaled kernel
    var s = linear(style, { weight: l.scales[0], bias: l.scales[1], shape: [x.shape[0], style.data.length] }, w).data;
    var zero = new Float64Array(s.length), y = conv(scaled(x, s, zero), l, w), W = w[l.weight], O = l.shape[0], C = l.shape[1], each = l.shape[2] * l.shape[3];
    if (!l.demodulate) return y;
    var lengths = new Float64Array(O);
    for (var o = 0; o < O; o++) {
      for (var c = 0; c < C; c++) for (var k = 0; k < each; k++) lengths[o] += Math.pow(s[c] * W[(o * C + c) * each + k], 2);
      lengths[o] = 1 / Math.sqrt(lengths[o] + 1e-8);
    }
    return scaled(y, lengths, new Float64Array(O));
  }

  function noisy(x, conv, l, w) { // fixed noise, a bias for each channel, a leaky rectifier
    var n = x.data.length / x.shape[0], strength = w[conv.strength][0], noise = w[conv.noise], bias = w[conv.offset], out = new Float32Array(x.data.length);
    for (var i = 0; i < out.length; i++) {
      var v = x.data[i] + strength * noise[i % n] + bias[Math.floor(i / n)];
      out[i] = l.gain * (v > 0 ? v : l.slope * v);
    }
    return { data: out, shape: x.shape };
  }

  function doubled(x) { // linearly between the places
    var H = x.shape[1], V = x.shape[2], out = new Float32Array(4 * x.data.length);
    function ends(i, n) { var at = Math.max(0, i / 2 - 0.25), low = Math.floor(at); return [low, Math.min(n - 1, low + 1), at - low]; }
    for (var c = 0; c < x.shape[0]; c++) for (var y = 0; y < 2 * H; y++) for (var q = 0, a = ends(y, H); q < 2 * V; q++) {
      var b = ends(q, V), at = function (r, k) { return x.data[(c * H + r) * V + k]; };
      out[(c * 2 * H + y) * 2 * V + q] = (1 - a[2]) * ((1 - b[2]) * at(a[0], b[0]) + b[2] * at(a[0], b[1])) + a[2] * ((1 - b[2]) * at(a[1], b[0]) + b[2] * at(a[1], b[1]));
    }
    return { data: out, shape: [x.shape[0], 2 * H, 2 * V] };
  }

  function run(layers, x, w) {
    return layers.reduce(function (x, l) {
      if (!ops[l.op]) throw new Error("genbook: unknown layer " + l.op);
      return ops[l.op](x, l, w);
    }, x);
  }

  function network(net) { // {layers, packs, back} -> a promise of a function of a code, which may have a way back
    return Promise.all(net.packs.map(unpacked)).then(function (found) {
      var w = Object.assign.apply(null, [{}].concat(found));
      function through(layers) { return function (z) { return run(layers, { data: Float32Array.from(z), shape: [z.length] }, w); }; }
      var f = through(net.layers);
      if (net.back) f.back = through(net.back); // of a flow: from an image to its code
      return f;
    });
  }

  // ---- codes

  function normal(next) { return Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()); }

  function seeded(seed) { // mulberry32: uniform numbers that a seed fixes
    var a = (seed + 1) * 0x9e3779b9 | 0;
    return function () {
      a = a + 0x6d2b79f5 | 0;
      var t = Math.imul(a ^ a >>> 15, 1 | a);
      t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
      return ((t ^ t >>> 14) >>> 0) / 4294967296;
    };
  }

  function draws(n, seed) {
    var next = seeded(seed), out = [];
    for (var i = 0; i < n; i++) out.push(normal(next));
    return out;
  }

  function between(a, b, t, path) { // the straight line, or the great circle
    var na = 0, nb = 0, dot = 0, u = 1 - t, v = t;
    a.forEach(function (x, i) { na += x * x; nb += b[i] * b[i]; dot += x * b[i]; });
    if (path === "great circle") {
      var omega = Math.acos(Math.min(1, Math.max(-1, dot / Math.sqrt(na * nb)))), s = Math.sin(omega);
      if (s > 1e-4) { u = Math.sin((1 - t) * omega) / s; v = Math.sin(t * omega) / s; }
    }
    return a.map(function (x, i) { return u * x + v * b[i]; });
  }

  // ---- the page

  var STYLE = ".gb-explorer{max-width:100%;margin:.5rem 0}.gb-live{display:flex;flex-wrap:wrap;gap:1rem 1.5rem;align-items:flex-start}" +
    ".gb-controls{flex:1 1 15rem;min-width:0;max-width:26rem;display:grid;gap:.4rem}.gb-controls label{display:grid;grid-template-columns:6.5rem minmax(0,1fr) 3.2rem;gap:.5rem;align-items:center;font-size:.9rem}" +
    ".gb-controls input[type=range]{width:100%;min-height:1.75rem;margin:0;touch-action:pan-y}.gb-controls select,.gb-controls button{font:inherit;min-height:2rem;max-width:100%}" +
    ".gb-controls output{text-align:right;font-variant-numeric:tabular-nums}.gb-explorer canvas{max-width:100%;height:auto;image-rendering:pixelated;background:#000;outline:1px solid #888}" +
    ".gb-pad{position:relative;touch-action:none;cursor:crosshair;line-height:0;max-width:100%}.gb-pad i{position:absolute;width:14px;height:14px;margin:-7px;border:2px solid #fff;outline:2px solid #d55e00;border-radius:50%;pointer-events:none}" +
    ".gb-pad:focus-visible{outline:3px solid #0072b2;outline-offset:2px}.gb-told{margin:0}.gb-told canvas{width:min(140px,27vw)!important}.gb-told figcaption{font-size:.85rem;text-align:center}.gb-note{font-size:.85rem;margin:.2rem 0 0;line-height:1.35}";

  function made(tag, about, parent) {
    var e = document.createElement(tag);
    Object.keys(about || {}).forEach(function (k) { if (k in e && k !== "list") e[k] = about[k]; else e.setAttribute(k, about[k]); });
    if (parent) parent.appendChild(e);
    return e;
  }

  function slider(parent, about, changed) {
    var label = made("label", {}, parent);
    made("span", { textContent: about.label }, label);
    var input = made("input", { type: "range", min: about.min, max: about.max, step: about.step }, label), output = made("output", {}, label);
    function show() { output.textContent = about.names ? about.names[+input.value] : (+input.value).toFixed(about.digits === undefined ? 2 : about.digits); input.setAttribute("aria-valuetext", output.textContent); }
    input.addEventListener("input", function () { show(); changed(); });
    return { get: function () { return +input.value; }, set: function (v) { input.value = v; show(); } };
  }

  function menu(parent, about, changed) {
    var label = made("label", {}, parent);
    made("span", { textContent: about.label }, label);
    var select = made("select", {}, label);
    about.options.forEach(function (o, i) { made("option", { value: i, textContent: o }, select); });
    select.addEventListener("change", changed);
    return { get: function () { return +select.value; }, set: function (v) { select.value = v; } };
  }

  function button(parent, text, pressed) { made("button", { type: "button", textContent: text }, parent).addEventListener("click", pressed); }

  function paint(context, x, left, top) { // a picture of shape (c, h, w)
    var c = x.shape[0], h = x.shape[1], v = x.shape[2], n = h * v, image = context.createImageData(v, h);
    for (var i = 0; i < n; i++) for (var k = 0; k < 4; k++)
      image.data[4 * i + k] = k === 3 ? 255 : Math.round(255 * Math.min(1, Math.max(0, x.data[(c === 3 ? k : 0) * n + i])));
    context.putImageData(image, left || 0, top || 0);
  }

  function screen(parent, v, h, label, wide) {
    var canvas = made("canvas", { width: v, height: h, role: "img", "aria-label": label }, parent);
    canvas.style.width = (wide || v * Math.max(1, Math.round(224 / v))) + "px";
    return canvas;
  }

  function told(parent, size, words) { // a screen with its name below
    var figure = made("figure", { className: "gb-told" }, parent), canvas = screen(figure, size[1], size[0], words, 140);
    made("figcaption", { textContent: words }, figure);
    return canvas;
  }

  function later(draw) { // at most once a frame
    var waiting = false;
    return function () {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(function () { waiting = false; draw(); });
    };
  }

  // The plane of two dimensions: a map of pictures with a point on it that pointer and arrow keys move.
  function plane(parent, size, about, get, set) {
    var pad = made("div", { className: "gb-pad", tabIndex: 0, role: "application" }, parent), n = 9, canvas = screen(pad, n * size[1], n * size[0], "", n * 28), point = made("i", {}, pad);
    pad.setAttribute("aria-label", "Plane of " + about.join(" and ") + ": the arrow keys move the point");
    canvas.setAttribute("aria-label", "Map of pictures over the plane");
    function move(e) {
      var box = canvas.getBoundingClientRect();
      set([(e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height]);
    }
    pad.addEventListener("pointerdown", function (e) { pad.setPointerCapture(e.pointerId); move(e); });
    pad.addEventListener("pointermove", function (e) { if (pad.hasPointerCapture(e.pointerId)) move(e); });
    pad.addEventListener("keydown", function (e) {
      var step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key], at = get();
      if (!step) return;
      e.preventDefault();
      set([at[0] + step[0] / 40, at[1] + step[1] / 40]);
    });
    return {
      show: function () { var at = get(); point.style.left = 100 * at[0] + "%"; point.style.top = 100 * at[1] + "%"; },
      map: function (picture) {
        var context = canvas.getContext("2d");
        for (var y = 0; y < n; y++) for (var q = 0; q < n; q++) paint(context, picture([(q + 0.5) / n, (y + 0.5) / n]), q * size[1], y * size[0]);
      }
    };
  }

  var KINDS = {
    latent: function (spec, live, controls, f) {
      var span = spec.span, code = spec.starts[0].slice(), size = f(code).shape, pad, start, knobs;
      var clip = function (v) { return Math.min(span, Math.max(-span, v)); };
      var canvas = screen(live, size[2], size[1], "The picture of the code"), draw = later(function () {
        knobs.forEach(function (knob, i) { if (knob.moved) code[spec.dims[i]] = knob.get(); });
        paint(canvas.getContext("2d"), f(code));
        if (pad) pad.show();
      });
      function turn(i) { return function () { knobs[i].moved = true; draw(); if (i > 1) redrawn(); }; }
      var redrawn = later(function () {
        if (pad) pad.map(function (at) {
          var z = code.slice();
          z[spec.dims[0]] = span * (2 * at[0] - 1); z[spec.dims[1]] = span * (1 - 2 * at[1]);
          return f(z);
        });
      });
      function begin(z) {
        code = z.slice();
        knobs.forEach(function (knob, i) { knob.set(clip(code[spec.dims[i]])); knob.moved = false; });
        draw(); redrawn();
      }
      if (spec.plane && spec.dims.length > 1) pad = plane(live, [size[1], size[2]], [0, 1].map(function (i) { return "z[" + spec.dims[i] + "]"; }), function () {
        return [(clip(knobs[0].get()) / span + 1) / 2, (1 - clip(knobs[1].get()) / span) / 2];
      }, function (at) {
        knobs[0].set(clip(span * (2 * at[0] - 1))); knobs[1].set(clip(span * (1 - 2 * at[1])));
        knobs[0].moved = knobs[1].moved = true;
        draw();
      });
      if (spec.starts.length > 1) start = menu(controls, { label: "begin with", options: spec.names }, function () { begin(spec.starts[start.get()]); });
      knobs = spec.dims.map(function (d, i) { return slider(controls, { label: "z[" + d + "]", min: -span, max: span, step: span / 50 }, turn(i)); });
      if (spec.random) button(controls, "a random code", function () { begin(draws(code.length, Math.floor(1e9 * Math.random()))); });
      begin(code);
    },
    between: function (spec, live, controls, f) {
      var ends = spec.pairs[0], pair, size = f(ends[0]).shape, canvas = screen(live, size[2], size[1], "The picture between the two"), t, path;
      var draw = later(function () { paint(canvas.getContext("2d"), f(between(ends[0], ends[1], t.get(), spec.paths[path.get()]))); });
      if (spec.pairs.length > 1) pair = menu(controls, { label: "pair", options: spec.names }, function () { ends = spec.pairs[pair.get()]; draw(); });
      t = slider(controls, { label: "t", min: 0, max: 1, step: 0.01 }, draw);
      path = menu(controls, { label: "path", options: spec.paths }, draw);
      if (spec.random) button(controls, "two new ends", function () { ends = [0, 1].map(function () { return draws(ends[0].length, Math.floor(1e9 * Math.random())); }); draw(); });
      t.set(0.5); path.set(0); draw();
    },
    tempered: function (spec, live, controls, f) { // one code, scaled: draws at a temperature
      var canvas = screen(live, spec.size[1], spec.size[0], "A sample at this temperature"), temperature, seed;
      var draw = later(function () { paint(canvas.getContext("2d"), f(draws(spec.dim, seed.get()).map(function (v) { return temperature.get() * v; }))); });
      temperature = slider(controls, { label: "temperature", min: spec.range[0], max: spec.range[1], step: 0.02 }, draw);
      seed = slider(controls, { label: "seed", min: 0, max: 99, step: 1, digits: 0 }, draw);
      temperature.set(1); seed.set(0); draw();
    },
    flow: function (spec, live, controls, f) { // an image, its code, and the image of a code on the way to another, at a temperature
      var screens = ["the image", "its code", "back, on the way and times T"].map(function (words) { return told(live, spec.size, words); });
      var start, end, t, temperature, codes = [], said, n = spec.starts.length;
      function show(i, x) { paint(screens[i].getContext("2d"), { data: x.data, shape: spec.shape }); }
      function noisy(i) { // an image with noise in its bins, as whole numbers of two bytes
        var b = bytes(spec.starts[i]), v = [];
        for (var k = 0; k < b.length; k += 2) v.push((b[k] + 256 * b[k + 1] + 0.5) / 65536);
        return v;
      }
      function code(i) { return Array.from(f.back(noisy(i)).data); }
      var draw = later(function () { show(2, f(between(codes[0], codes[1], t.get(), "great circle").map(function (v) { return temperature.get() * v; }))); });
      function begin(z, image) { // at temperature 1 the way there and back changes nothing
        codes[0] = z;
        var again = f(z), same = 0;
        if (image) image.forEach(function (v, i) { same += Math.abs(v - again.data[i]) < 1e-4; });
        show(0, { data: image || again.data }); show(1, { data: z.map(sigmoid) });
        said.textContent = image ? "There and back at T = 1: " + same + " of " + z.length + " pixels are as they were." : "A code that was drawn, and its image.";
        temperature.set(1); t.set(0); show(2, again);
      }
      function given(i) {
        begin(code(i), noisy(i).map(function (p) { return Math.floor(p * spec.levels) / (spec.levels - 1); }));
      }
      start = menu(controls, { label: "begin with", options: spec.names }, function () { given(start.get()); });
      end = menu(controls, { label: "on the way to", options: spec.names }, function () { codes[1] = code(end.get()); draw(); });
      t = slider(controls, { label: "t", min: 0, max: 1, step: 0.02 }, draw);
      temperature = slider(controls, { label: "temperature T", min: spec.range[0], max: spec.range[1], step: 0.02 }, draw);
      button(controls, "a random code", function () { begin(draws(codes[0].length, Math.floor(1e9 * Math.random()))); });
      said = made("p", { className: "gb-note", "aria-live": "polite" }, controls);
      end.set(n - 1); codes[1] = code(n - 1); given(0);
    },
    styled: function (spec, live, controls, f) { // two codes, and the image whose coarse layers are of the first
      var screens = ["one code", "both", "another code"].map(function (words) { return told(live, spec.size, words); }), codes, psi, crossing;
      function show(i, a, b, layers) { paint(screens[i].getContext("2d"), f(a.concat(b, [psi.get(), layers]))); }
      var draw = later(function () {
        show(0, codes[0], codes[0], 0); show(1, codes[0], codes[1], crossing.get()); show(2, codes[1], codes[1], 0);
      });
      function pair(seed) { return [2 * seed, 2 * seed + 1].map(function (s) { return draws(spec.dim, s); }); }
      psi = slider(controls, { label: "truncation ψ", min: 0, max: 1.2, step: 0.02 }, draw);
      crossing = slider(controls, { label: "layers of one", min: 0, max: spec.layers, step: 1, digits: 0 }, draw);
      button(controls, "two new codes", function () { codes = pair(Math.floor(1e6 * Math.random())); draw(); });
      codes = spec.codes; psi.set(0.7); crossing.set(Math.ceil(spec.layers / 2)); draw();
    },
    frames: function (spec, live, controls) { // pictures that were made before, one for each setting
      var canvas = screen(live, spec.size[1], spec.size[0], spec.label, spec.wide), image = new Image(), knobs = [];
      function draw() {
        var at = knobs.reduce(function (at, knob, i) { return at * spec.controls[i].values.length + knob.get(); }, 0);
        canvas.getContext("2d").drawImage(image, 0, -at * spec.size[0]);
        canvas.dataset.frame = at;
      }
      knobs = spec.controls.map(function (c) {
        var knob = c.menu ? menu(controls, { label: c.label, options: c.values }, draw) : slider(controls, { label: c.label, min: 0, max: c.values.length - 1, step: 1, names: c.values }, draw);
        knob.set(c.start);
        return knob;
      });
      image.onload = draw;
      image.src = "data:image/png;base64," + spec.sprite;
    }
  };

  function loaded(net) { // its own, or that of a pretrained model, which the page holds once for several explorers
    if (!net) return Promise.resolve(null);
    return network(net.pretrained ? JSON.parse(document.querySelector('script[data-weights="' + net.pretrained + '"]').textContent) : net);
  }

  function mount(host) {
    var spec = JSON.parse(host.querySelector("script").textContent), still = host.querySelector("img");
    host.dataset.mounted = "waits";
    loaded(spec.net).then(function (f) {
      var live = made("div", { className: "gb-live" }), controls = made("div", { className: "gb-controls", role: "group", "aria-label": spec.title });
      KINDS[spec.kind](spec, live, controls, f);
      live.appendChild(controls);
      if (spec.note) made("p", { className: "gb-note", textContent: spec.note }, controls);
      live.querySelectorAll("input, select, button, [tabindex]").forEach(function (e) { e.setAttribute("data-lm-suppress-shortcuts", "true"); }); // JupyterLab takes no key of theirs
      host.appendChild(live);
      if (still) still.style.display = "none";
      host.dataset.mounted = "done";
    }).catch(function (e) { console.error(e); host.dataset.mounted = "failed"; }); // the still picture stays
  }

  function mountAll() {
    if (typeof document === "undefined") return;
    if (!document.getElementById("gb-style")) made("style", { id: "gb-style", textContent: STYLE }, document.head);
    document.querySelectorAll(".gb-explorer:not([data-mounted])").forEach(mount);
  }

  root.genbook = { network: network, unpacked: unpacked, between: between, draws: draws, mountAll: mountAll };
  if (typeof module === "object" && module.exports) module.exports = root.genbook;
  if (typeof document !== "undefined") {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll); else mountAll();
  }
})(typeof globalThis === "object" ? globalThis : window);
