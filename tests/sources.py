"""Sample sources with the constructs that are hard to cut, one a language."""

SOURCES = {
    "python": '''#!/usr/bin/env python3
"""Module one
docstring."""
from __future__ import annotations
import os; import sys
x = """one
two"""; y = 2
    # indented comment at the top

@decorator
@other(1,
       2)
class A(Base):
    """Doc."""
    one = 1
# dedented comment
    two: int = 2

    @property
    def f(self, a=(1,
                   2)): return 1

    async def g(
        self,
    ) -> None:
        # leading comment
        def inner():
            yield 1
            # trailing comment

        text = """
unindented
"""
        if x:
            pass
        elif y:
            return
        else:
            raise E
        try:
            a = 1; b = 2
        except E as e: pass
        finally:
            c = [
1, 2]
            # end of finally
    # end of class

@decorator
def one_liner(): return 1
def f():

    # comment

    pass
match x:
    case 1:
        pass
lambda_ = lambda: 0  # same line
if __name__ == "__main__":
    main()
    # the end
''',
    "javascript": """#!/usr/bin/env node
'use strict';
import a, { b } from "one";
/** Docs. */
export default class A extends B {
    // comment
    static one = 1;
    #two = 2
    constructor() {
        super();
        this.x = `multi
line ${1 + 1}`; this.y = 2
    }

    get x() { return 1; }
    async *gen() {
        if (a) {
            return;
        } else {
            b();
        }
        try { c() } catch (e) {
        } finally { d() }
    }
}
function f(a) {
    const x = {
        one: 1,
    }; let y = 2;
    return () => {
        go();
    };
    // trailing
}
function g() {} function h() {
}
const k = async () => {
    await 1
}
export function m() {
    switch (x) {
        case 1: break;
        default:
    }
    label: for (;;) { break label }
}
""",
    "typescript": """import type { A } from "one";
@Component({ selector: "x" })
export abstract class C<T> implements I {
    @Input() name: string;
    @Output()
    changed = new E<string>();
    private readonly one?: number;
    constructor(private a: string) {
        super();
        this.a = a;
    }
    abstract go(): void;
    run(x: number): void;
    run(x: any): void {
        const y = x as number;
        return;
    }
}
export interface I {
    a: string;
    b(x: number): void,
    readonly c?: [number, string]
}
type U = "one" | "two";
enum E {
    A = 1,
    B,
}
function f<T>(x: T): asserts x is T {
    return;
    // end
}
namespace N {
    export const x = 1;
}
declare module "m" {
    export function f(): void;
}
""",
    "tsx": """import React from "react";
export function App({ one }: { one: string }) {
    const [a, setA] = useState<number>(0);
    // comment
    return (
        <div className="x">
            {a ? <b>one</b> : null}
        </div>
    );
}
class P extends React.Component<Props> {
    state = {};
    render() {
        const x = 1;
        return <></>;
    }
}
export default App;
""",
    "java": """package one;

import java.util.*;
import static java.lang.Math.*;

/** Docs. */
@Deprecated
public final class A<T> extends B implements C {
    private int x = 1; // one
    static {
        y = 2;
    }
    /* block
       comment */
    @Override
    public A(int x) {
        super(x);
        this.x = x;
    }

    public String f() { return ""; }
    @Test
    void g() throws E {
        if (a) {
            b();
        } else if (c) {
            d();
        }
        try (var r = open()) {
            e();
        } catch (E e) {
        } finally { f(); }
        String s = \"\"\"
            one
            \"\"\"; int z = 3;
        return;
    }
    enum Color { RED, GREEN; void f() {} }
    interface D {
        void h();
        default int i() {
            return 1;
        }
    }
    class Inner {
        int q;
    }
}
""",
    "go": """// Package one does things.
package one

import (
	"fmt"
	"os"
)

const (
	A = iota
	B
)

type S struct {
	x int // one
}

// String docs.
func (s *S) String() string {
	// first
	defer func() {
		recover()
	}()
	if err := f(); err != nil {
		return `raw
string`
	} else {
		g()
	}
	a := 1; b := 2
	switch x := y.(type) {
	case int:
	default:
	}
	return fmt.Sprint(a, b)
	// last
}

func one() { two() }
func empty() {
}
var x = func() int {
	return 1
}
""",
    "rust": """//! Crate one.
#![allow(dead_code)]
use std::{fmt, io};

/// Docs.
#[derive(Debug, Clone)]
pub struct S<'a> {
    x: &'a str,
}

#[derive(Debug)]
enum E { A, B(i32) }

impl<'a> fmt::Display for S<'a> {
    /// Writes.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let one = r#"raw
"string""#; let two = 2;
        match self.x {
            "a" => {}
            _ => return Ok(()),
        }
        if two > 1 {
            three();
        } else {
            four();
        }
        write!(f, "{}", one)
    }

    const C: i32 = 1;
}

mod tests {
    #[test]
    #[ignore]
    fn f() {
        assert!(true);
        // last
    }
    fn g() -> i32 { 1 }
}

trait T {
    fn h(&self);
    fn i(&self) -> i32 {
        1
    }
}
macro_rules! m {
    ($x:expr) => { $x };
}
""",
    "c": """#ifndef ONE_H
#define ONE_H
#include <stdio.h>
#define MAX(a, b) \\
    ((a) > (b) ? (a) : (b))

/* docs */
typedef struct {
    int x;
    char *y; // one
} S;

enum e { A, B };
static int f(int a,
             int b)
{
    int x = 1; int y = 2;
    #ifdef DEBUG
    printf("a");
    #else
    printf("b");
    #endif
    if (a) {
        goto end;
    } else {
        x++;
    }
    do { y--; } while (y);
    switch (x) {
    case 1: break;
    default: ;
    }
end:
    return x;
}

int one(void) { return 1; }
void two(void);
#define LAST 1
#endif
""",
    "cpp": """#include <vector>
using namespace std;

namespace one {
// comment
template <typename T>
class A : public B {
public:
    A() : x(1) {
        y = 2;
    }
    ~A();
    int f() const { return x; }
protected:
    virtual void g() = 0;
private:
    int x;
    int y;
};

template <class T>
T add(T a, T b) {
    auto h = [&](int z) {
        return z;
    };
    for (auto& v : {1, 2}) {
        h(v);
    }
    auto s = R"(raw
string)"; int q = 1;
    return a + b;
}
extern "C" {
    int k(void);
    int l(void);
}
struct S {
    int a;
};
}  // namespace one
int main() {
    try { one::add(1, 2); } catch (...) {
    }
    return 0;
}
""",
    "bash": """#!/bin/bash
set -e
# comment
one=1; two=2
f() {
    local x=$1
    echo "$x"
    if [ -n "$x" ]; then
        return 1
    else
        :
    fi
}
cat <<EOF
heredoc $one
  # not a comment
EOF
for i in a b; do
    echo "multi
line" | sed 's/a/b/' \\
        | wc
done
case "$1" in
    start) f ;;
    *) exit 1 ;;
esac
arr=(
    1 2
)
f && echo ok || echo no
""",
}
